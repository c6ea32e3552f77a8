"""Lines of events: what a run writes for programs and for people, beside its ledger, without secrets."""

import json
import logging
import shlex
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2composite.logs import LogFormatter
from s2composite.runner.ledger import read_ledger
from support.job_helpers import signed_job

SECRET = "VERYSECRETSIGNATURE"


def run_cli(*arguments):
    command = [sys.executable, "-c", "from s2composite.cli import main; main()", *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run on scenes of which one cannot be read in places, from a server that fails now and then."""
    directory = tmp_path_factory.mktemp("logged")
    with signed_job(directory, 256, SECRET, fault=lambda path, n: "503" if n == 3 else None) as spec:
        (directory / "job.json").write_text(json.dumps({**spec, "cluster": {"workers": 1, "dashboard": ":0"}}))
        done = run_cli("run", str(directory / "job.json"), "--log", "json")
    return done, directory


@pytest.mark.slow
def test_every_line_is_json_and_the_events_are_those_of_the_ledger(ran):
    done, directory = ran
    assert done.returncode == 1, done.stderr
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert all({"at", "level", "logger", "message"} <= set(line) for line in lines)
    told = [line for line in lines if line["logger"] == "s2composite.runner.ledger"]
    kept = read_ledger(str(directory / "median.tif"))
    assert [line["message"] for line in told] == [event["event"] for event in kept]
    for line, event in zip(told, kept, strict=True):
        common = event.keys() & line.keys() - {"at"}
        assert {key: line[key] for key in common} == {key: event[key] for key in common}
    assert any(line["message"].startswith("connected") for line in lines)


@pytest.mark.slow
def test_what_workers_log_arrives_with_their_address(ran):
    lines = [json.loads(line) for line in ran[0].stderr.splitlines()]
    refused = [line for line in lines if line["logger"] == "s2composite.storage.http" and "worker" in line]
    assert refused
    assert all("503" in line["message"] and line["worker"].startswith("tcp://") for line in refused)
    assert {line["attempt"] for line in refused} == {1}
    assert all(line["level"] == "warning" for line in refused)


@pytest.mark.slow
def test_no_signature_is_told(ran):
    done, _ = ran
    assert SECRET not in done.stderr
    assert SECRET not in done.stdout
    assert "_TCI.tif" in done.stderr


@pytest.mark.slow
def test_an_error_is_a_line_too(tmp_path):
    (tmp_path / "job.yaml").write_text(f"source: {tmp_path}/nowhere\noutput: {tmp_path}/median.tif\n")
    done = run_cli("run", str(tmp_path / "job.yaml"), "--log", "json")
    assert done.returncode == 2
    (line,) = map(json.loads, done.stderr.splitlines())
    assert (line["level"], line["error"]) == ("error", "SourceError")
    text = run_cli("run", str(tmp_path / "job.yaml"), "--log", "text")
    pairs = dict(pair.split("=", 1) for pair in shlex.split(text.stderr))
    assert pairs["message"] == line["message"]
    assert pairs["error"] == "SourceError"


PRINTABLE = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), max_size=60)


@given(PRINTABLE, st.dictionaries(st.from_regex(r"[a-z]{2,8}", fullmatch=True), PRINTABLE, max_size=3))
def test_one_event_is_one_line_whatever_is_in_it(message, known):
    record = logging.LogRecord("s2composite.test", logging.WARNING, "", 0, "%s", (message,), None)
    record.facts = known
    for form in ("text", "json"):
        assert "\n" not in LogFormatter(form).format(record)
    if "http" not in message + "".join(known.values()):
        line = json.loads(LogFormatter("json").format(record))
        assert line["message"] == known.get("message", message)
