"""Files of examples/deploy: valid by the schemas of what reads them, and what they configure is what there is."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

import s2composite
from s2composite.service.settings import TOKEN, ServiceLimits, load_settings
from s2composite.storage.urls import VARIABLE, Access
from support import ROOT

DEPLOY = ROOT / "examples" / "deploy"
KUBERNETES = "1.34"


def documents(path):
    return list(yaml.safe_load_all((DEPLOY / path).read_text()))


def of_kind(path, kind):
    return next(d for d in documents(path) if d["kind"] == kind)


def google_schema(api, name):
    """Return the JSON Schema of a message of Google's API description, where an unknown field is an error."""
    import googleapiclient

    folder = Path(googleapiclient.__file__).parent / "discovery_cache" / "documents"
    schemas = json.loads((folder / f"{api}.json").read_text())["schemas"]

    def closed(schema):
        if "$ref" in schema:
            return {"$ref": f"#/$defs/{schema['$ref']}"}
        out = {key: schema[key] for key in ("type", "enum") if key in schema}
        if out.get("type") == "any":
            del out["type"]
        if "properties" in schema:
            out["properties"] = {key: closed(value) for key, value in schema["properties"].items()}
            out["additionalProperties"] = False
        if "additionalProperties" in schema:
            out["additionalProperties"] = closed(schema["additionalProperties"])
        if "items" in schema:
            out["items"] = closed(schema["items"])
        return out

    return {"$ref": f"#/$defs/{name}", "$defs": {key: closed(value) for key, value in schemas.items()}}


def check_kubernetes(document):
    """Raise where a document is not what Kubernetes takes."""
    import kubernetes_validate

    kubernetes_validate.validate(document, KUBERNETES, strict=True)


@pytest.mark.slow
def test_schemas_find_mistakes():
    """Whatever validates everything proves nothing."""
    run = documents("cloudrun.yaml")[0]
    run["spec"]["template"]["spec"]["containerConcurency"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(run, google_schema("run.v1", "Service"))
    deployment = of_kind("kubernetes/service.yaml", "Deployment")
    deployment["spec"]["replica"] = 1
    with pytest.raises(jsonschema.ValidationError, match="'replica' was unexpected"):
        check_kubernetes(deployment)


@pytest.mark.slow
@pytest.mark.parametrize("document", documents("kubernetes/service.yaml"), ids=lambda d: d["kind"])
def test_kubernetes(document):
    check_kubernetes(document)


@pytest.mark.slow
def test_kubernetes_with_the_dask_operator(check_manifest):
    cluster, policy = documents("kubernetes/dask.yaml")
    check_kubernetes(policy)
    check_manifest(cluster)
    with pytest.raises(jsonschema.ValidationError):
        check_manifest(cluster | {"spec": cluster["spec"] | {"workers": 4}})
    for part in ("worker", "scheduler"):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": cluster["spec"][part]["spec"]}
        check_kubernetes(pod)


@pytest.mark.slow
def test_cloud_run():
    jsonschema.validate(documents("cloudrun.yaml")[0], google_schema("run.v1", "Service"))


@pytest.mark.slow
def test_pubsub():
    made = documents("pubsub.yaml")[0]
    for topic in made["topics"].values():
        jsonschema.validate(topic, google_schema("pubsub.v1", "Topic"))
    for subscription in made["subscriptions"].values():
        jsonschema.validate(subscription, google_schema("pubsub.v1", "Subscription"))
        assert subscription["topic"] in made["topics"]
    pushed = made["subscriptions"]["projects/PROJECT/subscriptions/s2composite"]
    assert pushed["deadLetterPolicy"]["deadLetterTopic"] in made["topics"]
    assert pushed["pushConfig"]["pushEndpoint"].endswith("/median")


def test_compose():
    schema = json.loads((ROOT / "tests" / "support" / "data_schemas" / "compose-spec.json").read_text())
    compose = documents("compose.yaml")[0]
    jsonschema.Draft201909Validator(schema).validate(compose)
    assert {"service", "store", "scheduler", "worker"} <= set(compose["services"])
    for name, service in compose["services"].items():
        assert re.search(r":[\w.-]+\d", service["image"]), f"{name} is pinned"
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:")


def configured():
    """Every file of settings that is in there, with how the service is called."""
    compose = documents("compose.yaml")[0]
    kubernetes = of_kind("kubernetes/service.yaml", "ConfigMap")["data"]["service.yaml"]
    run = documents("cloudrun.yaml")[0]["spec"]["template"]["spec"]["containers"][0]["args"]
    deployment = of_kind("kubernetes/service.yaml", "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
    return [
        (
            "compose",
            (DEPLOY / compose["configs"]["settings"]["file"]).read_text(),
            compose["services"]["service"]["command"],
        ),
        ("kubernetes", kubernetes, deployment),
        ("cloudrun", (DEPLOY / "service.yaml").read_text(), run),
    ]


@pytest.mark.parametrize(("where", "text", "arguments"), configured(), ids=lambda value: str(value)[:10])
def test_what_is_configured_is_what_there_is(where, text, arguments):
    options = [arguments[i + 1] for i, word in enumerate(arguments) if word == "--set"]
    settings = load_settings(yaml.safe_load(text), options, host=arguments[arguments.index("--host") + 1])
    assert not settings.loopback
    assert settings.port == 8080
    assert settings.limits.seconds < 600, "the deadline of the queue"
    if where == "cloudrun":
        subscription = documents("pubsub.yaml")[0]["subscriptions"]["projects/PROJECT/subscriptions/s2composite"]
        token = subscription["pushConfig"]["oidcToken"]
        assert (settings.push.email, settings.push.audience) == (token["serviceAccountEmail"], token["audience"])
    else:
        assert settings.storage is not None


def test_settings_in_the_guide_are_settings():
    text = (ROOT / "docs" / "pages" / "guides" / "service.md").read_text()
    (block,) = re.findall(r"^```yaml[^\n]*\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert load_settings(yaml.safe_load(block)).limits == ServiceLimits(), "what is shown is what is so by itself"


def test_limits_of_workers_are_limits():
    compose = documents("compose.yaml")[0]["x-limits"][VARIABLE]
    container = of_kind("kubernetes/dask.yaml", "DaskCluster")["spec"]["worker"]["spec"]["containers"][0]
    kubernetes = next(entry["value"] for entry in container["env"] if entry["name"] == VARIABLE)
    for text in (compose, kubernetes):
        assert Access(**json.loads(text)).read


def test_every_deployment_has_the_token_from_a_secret():
    for path in ("cloudrun.yaml", "compose.yaml", "kubernetes/service.yaml"):
        text = (DEPLOY / path).read_text()
        assert TOKEN in text
        assert re.search(rf"{TOKEN}: \$\{{{TOKEN}:\?|{TOKEN}\n\s+valueFrom:\n\s+secretKeyRef", text)


def test_the_image_is_what_the_install_steps_make():
    text = (DEPLOY / "Dockerfile").read_text()
    assert re.findall(r"^FROM (\S+)", text, re.MULTILINE) == ["python:3.11.9-slim-bookworm"] * 2
    assert re.findall(r"^RUN (.*pip.*|.*install.*)$", text, re.MULTILINE) == ["sh install.sh /build /opt/s2composite"]
    assert text.rindex("USER 10001") > text.rindex("RUN")
    first, *pins = (DEPLOY / "requirements.txt").read_text().splitlines()
    assert first.startswith("#")
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins)
    extra = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["service"]
    assert {re.match(r"[\w-]+", need)[0].lower() for need in extra} <= {pin.partition("==")[0].lower() for pin in pins}


@pytest.mark.slow
def test_the_install_steps_in_a_clean_directory(tmp_path):
    """What the image is built from and nothing else, as the Dockerfile copies and runs it."""
    python = str(Path(sys._base_executable))
    if subprocess.run([python, "-m", "pip", "index", "versions", "uv"], capture_output=True, check=False).returncode:
        pytest.skip("no package index can be reached")
    build = tmp_path / "build"
    build.mkdir()
    text = (DEPLOY / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--)(.*) \S+$", text, re.MULTILINE)
    for name in " ".join(copied).split():
        source = ROOT / name
        ignored = shutil.ignore_patterns("__pycache__")
        if source.is_dir():
            shutil.copytree(source, build / source.name, ignore=ignored)
        else:
            shutil.copy(source, build)
    target = tmp_path / "opt" / "s2composite"
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    env["PATH"] = f"{Path(python).parent}:{env['PATH']}"
    (steps,) = re.findall(r"^RUN (sh .*)$", text, re.MULTILINE)
    words = [{"/build": str(build), "/opt/s2composite": str(target)}.get(word, word) for word in steps.split()]
    subprocess.run(words, check=True, cwd=build, env=env)
    assert [path.name for path in target.parent.iterdir()] == ["s2composite"], "nothing is left but what was asked for"
    done = subprocess.run(
        [target / "bin" / "s2composite", "--version"], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout.strip() == f"s2composite {s2composite.__version__}"
