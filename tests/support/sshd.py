"""A real SSH server on the loopback, with keys of its own."""

import getpass
import os
import shutil
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

from support import PYTHONPATH
from support.storage_servers import free_port

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def make_key(path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path.with_suffix(".pub").read_text().split()[:2]


@contextmanager
def ssh_server(directory):
    """Yield the process of a server that lets its own key in, and the options that reach it."""
    kind, host = make_key(directory / "host")
    (directory / "authorized").write_text(" ".join(make_key(directory / "user")))
    port = free_port()
    names = ("127.0.0.1", "localhost")
    (directory / "known").write_text("".join(f"[{name}]:{port} {kind} {host}\n" for name in names))
    config = {
        "ListenAddress": "127.0.0.1",
        "Port": port,
        "HostKey": directory / "host",
        "AuthorizedKeysFile": directory / "authorized",
        "PidFile": "none",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
        "KbdInteractiveAuthentication": "no",
        "PermitRootLogin": "prohibit-password",
        "SetEnv": f"PYTHONPATH={PYTHONPATH}",
    }
    (directory / "config").write_text("".join(f"{key} {value}\n" for key, value in config.items()))
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where sshd, run by root, locks in its unprivileged half
    command = [SSHD, "-D", "-e", "-f", str(directory / "config")]
    with (directory / "log").open("wb") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            _answers(port, process, directory / "log")
            yield (
                process,
                {
                    "type": "ssh",
                    "hosts": list(names),
                    "port": port,
                    "user": getpass.getuser(),
                    "key": str(directory / "user"),
                    "known_hosts": str(directory / "known"),
                    "dashboard": ":0",
                    "timeout": 30,
                },
            )
        finally:
            process.terminate()


def _answers(port, process, log):
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    raise AssertionError(log.read_text())
