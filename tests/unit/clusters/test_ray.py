"""Ray's cluster.yaml, as in eo-grow's examples, converted to our options."""

import logging

import pytest

from s2composite.clusters.backends import CoiledOptions, SshOptions
from s2composite.clusters.connect import read_cluster
from s2composite.clusters.ray import is_ray, read_ray_cluster
from s2composite.errors import JobError

# The two templates of https://github.com/sentinel-hub/eo-grow-examples, without their comments.
LOCAL = r"""
cluster_name: ray-cdse
docker:
    image: "rayproject/ray:latest-py39-cpu"
    container_name: "ray_container"
    pull_before_run: True
    run_options:   # Extra options to pass into "docker run"
        - --ulimit nofile=65536:65536
provider:
    type: local
    head_ip: <IP of the head node>
    worker_ips: [<LIST OF WORKER IPS>]
auth:
    ssh_user: eouser
    ssh_private_key: <LOCAL_PATH_TO_YOUR_KEYFILE> (i.e. ~/.ssh/gem-example-keypair.pem)
upscaling_speed: 1.0
idle_timeout_minutes: 5
file_mounts: {
}
cluster_synced_files: []
file_mounts_sync_continuously: False
rsync_exclude:
    - "**/.git"
    - "**/.git/**"
rsync_filter:
    - ".gitignore"
initialization_commands:
    - sudo apt -y install docker.io
    - sudo [ $(getent group docker) ] || sudo groupadd docker
    - sudo usermod -aG docker ${USER}
    - sudo systemctl restart docker.service
setup_commands:
    - git clone -b feat/ray-testing-dummy https://github.com/sentinel-hub/eo-grow-examples.git
    - pip install -e eo-grow-examples/GEM/
    - sudo apt-get update
    - sudo apt -y install awscli
    - mkdir ~/.aws/
    - echo -e "\n[default]\naws_access_key_id = <YOUR ACCESS KEY>\naws_secret_access_key = <YUUR SECRET KEY>" >> ~/.aws/credentials
head_setup_commands: []
worker_setup_commands: []
head_start_ray_commands:
    - ray stop
    - ulimit -c unlimited && ray start --head --port=6379 --autoscaling-config=~/ray_bootstrap_config.yaml
worker_start_ray_commands:
    - ray stop
    - ray start --address=$RAY_HEAD_IP:6379
"""

AWS = r"""
cluster_name: gem-example-cluster
max_workers: 10  # Max number of worker instances
upscaling_speed: 1.0
idle_timeout_minutes: 5
docker:
    image: "<<The Docker image URL to the ECR (as specified in the section above)>>"
    container_name: "gem-example"
    pull_before_run: True
provider:
    type: aws
    region: eu-central-1 # !! Can also be other regions, if you are running elsewhere !!
    availability_zone: eu-central-1a,eu-central-1b,eu-central-1c
    cache_stopped_nodes: False  # Change for terminating instances
available_node_types:
    ray.head:
        min_workers: 0
        max_workers: 0
        node_config:
            InstanceType: m5.2xlarge
            ImageId: << ID OF THE AMI CREATED IN THE FIRST STEP>>
            BlockDeviceMappings:
                - DeviceName: /dev/sda1
                  Ebs:
                      VolumeSize: 40
        resources: {"CPU": 1}
    ray.worker:
        min_workers: 0
        max_workers: 40  # Max number of workers of this type
        node_config:
            InstanceType: c5.large
            ImageId:  << ID OF THE AMI CREATED IN THE FIRST STEP>>
            InstanceMarketOptions:
                MarketType: spot
            BlockDeviceMappings:
                - DeviceName: /dev/sda1
                  Ebs:
                    VolumeSize: 40
        resources: {}
head_node_type: ray.head
file_mounts: {}
cluster_synced_files: []
file_mounts_sync_continuously: False
rsync_exclude:
    - "**/.git"
    - "**/.git/**"
rsync_filter:
    - ".gitignore"
initialization_commands:
    - aws ecr get-login-password | docker login --username AWS --password-stdin <<AWS ACCOUNT>>.dkr.ecr.<<AWS REGION>>.amazonaws.com
setup_commands: []
head_setup_commands: []
worker_setup_commands: []
head_start_ray_commands:
    - ray stop
    - ulimit -n 65536; ray start --head --port=6379 --object-manager-port=8076 --autoscaling-config=~/ray_bootstrap_config.yaml
worker_start_ray_commands:
    - ray stop
    - ulimit -n 65536; ray start --address=$RAY_HEAD_IP:6379 --object-manager-port=8076
head_node: {}
worker_nodes: {}
"""

FILLED = {
    "<IP of the head node>": "10.0.0.1",
    "<LIST OF WORKER IPS>": "10.0.0.2, 10.0.0.3",
    "<LOCAL_PATH_TO_YOUR_KEYFILE> (i.e. ~/.ssh/gem-example-keypair.pem)": "/keys/gem.pem",
}


def written(path, text, filled=True):
    for placeholder, value in FILLED.items() if filled else ():
        text = text.replace(placeholder, value)
    path.write_text(text)
    return path


def test_ray_provider_local_becomes_ssh(tmp_path, caplog):
    path = written(tmp_path / "cluster.yaml", LOCAL)
    with caplog.at_level(logging.WARNING):
        options = read_cluster(path)
    assert options == SshOptions(
        scheduler="10.0.0.1", hosts=("10.0.0.2", "10.0.0.3"), user="eouser", key="/keys/gem.pem"
    )
    unmapped = read_ray_cluster(path).unmapped
    assert {left.key for left in unmapped} == {
        "cluster_name", "docker.image", "docker.container_name", "docker.pull_before_run", "docker.run_options",
        "upscaling_speed", "idle_timeout_minutes", "rsync_exclude", "rsync_filter", "initialization_commands",
        "setup_commands", "head_start_ray_commands", "worker_start_ray_commands",
    }  # fmt: skip
    lines = path.read_text().splitlines()
    assert all(left.key.rpartition(".")[2] in lines[left.line - 1] for left in unmapped)
    assert len(caplog.records) == len(unmapped)
    assert "install s2composite there" in caplog.text
    assert "aws_secret_access_key" not in caplog.text


def test_ray_provider_aws_becomes_coiled(tmp_path):
    path = written(tmp_path / "cluster.yaml", AWS)
    assert read_cluster(path) == CoiledOptions(
        name="gem-example-cluster", region="eu-central-1", idle_timeout="5 minutes", minimum=0, maximum=10,
        vm_types=("c5.large",), scheduler_vm_types=("m5.2xlarge",), spot_policy="spot", disk_size=40,
    )  # fmt: skip
    keys = {left.key for left in read_ray_cluster(path).unmapped}
    assert {"provider.availability_zone", "docker.image", "initialization_commands"} <= keys
    assert {key for key in keys if key.startswith("available_node_types.ray.worker")} == {
        "available_node_types.ray.worker.node_config.ImageId"
    }


def test_settings_win(tmp_path):
    path = written(tmp_path / "cluster.yaml", LOCAL)
    assert read_cluster(path, threads=4).threads == 4


def test_a_placeholder_is_named_with_its_line(tmp_path):
    path = written(tmp_path / "cluster.yaml", LOCAL, filled=False)
    with pytest.raises(JobError, match=r"line 11: provider.head_ip still has the template's placeholder") as caught:
        read_cluster(path)
    assert caught.value.line == 11


def test_other_providers_are_refused(tmp_path):
    path = written(tmp_path / "cluster.yaml", "cluster_name: a\nprovider:\n  type: gcp\n")
    with pytest.raises(JobError, match=r"line 3: provider.type: expected one of local, aws, got 'gcp'"):
        read_cluster(path)
    written(path, "provider: aws\n")
    with pytest.raises(JobError, match=r"line 1: provider.type: expected one of local, aws, got None"):
        read_cluster(path)


def test_config_error_names_the_line(tmp_path):
    path = written(tmp_path / "cluster.yaml", AWS.replace("VolumeSize: 40", "VolumeSize: big"))
    with pytest.raises(JobError, match=r"line 35: cluster.disk_size: expected a whole number of GiB, got 'big'"):
        read_cluster(path)


def test_own_cluster_files_are_not_mistaken_for_rays(tmp_path):
    assert not is_ray(written(tmp_path / "cluster.yaml", "type: local\nworkers: 2\n"))
    assert not is_ray(tmp_path / "nowhere.yaml")
