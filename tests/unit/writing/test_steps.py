"""The bar where people see it: in a real terminal and in the kernel of a notebook; and nothing where it would disturb."""

import os
import pty
import re
import select
import subprocess
import sys

import pytest

STEPS = """
import time
from s2composite.writing.steps import progress_bar
with progress_bar("write median.tif", 40) as advance:
    for _ in range(40):
        time.sleep(0.03)
        advance()
"""


def in_terminal(code):
    """Return what a program writes to a terminal of 100 columns."""
    ours, theirs = pty.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", code], stdout=theirs, stderr=theirs, stdin=theirs, env=env) as process:
        os.close(theirs)
        text = b""
        while select.select([ours], [], [], 60)[0]:
            try:
                text += os.read(ours, 4096)
            except OSError:  # the program has ended
                break
        assert process.wait(200) == 0, text
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode())


def test_a_terminal_shows_a_bar_with_rate_and_time_left():
    shown = in_terminal(STEPS)
    last = re.split(r"[\r\n]+", shown.strip())[-1]
    assert re.search(r"write median\.tif .*40/40 \d+\.\d/s 0:00:00", last), last
    rate = float(re.search(r"([\d.]+)/s", last)[1])
    assert 0 < rate <= 40 / 1.2
    assert re.search(r"\b[1-3]\d/40 ", shown), "it moves"


@pytest.mark.slow
def test_a_notebook_shows_a_line_and_what_a_loop_prints():
    import nbformat
    from nbclient import NotebookClient

    cell = nbformat.v4.new_code_cell(STEPS.replace("advance()", "advance(); print('made', _)"))
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": {"name": "python3", "display_name": ""}})
    done = NotebookClient(notebook, timeout=200).execute()
    printed = "".join(output["text"] for output in done.cells[0].outputs if output.output_type == "stream")
    assert [int(number) for number in re.findall(r"made (\d+)", printed)] == list(range(40))
    assert re.fullmatch(r"(made \d+\n)+", printed), "what others print is not broken"
    (line,) = (output.data for output in done.cells[0].outputs if output.output_type == "display_data")
    assert re.fullmatch(r"write median\.tif: 40/40, \d+\.\d/s, in 0:00:0\d", line["text/plain"]), line
    assert 'value="40" max="40"' in line["text/html"]
    assert set(line) == {"text/plain", "text/html"}, "no widget"
    assert {output.output_type for output in done.cells[0].outputs} == {"stream", "display_data"}, "no warning"


@pytest.mark.slow
def test_the_line_of_a_notebook_moves():
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    shown = []
    try:
        client.execute_interactive(STEPS, timeout=200, output_hook=shown.append)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    lines = [message["content"]["data"]["text/plain"] for message in shown if "data" in message["content"]]
    assert lines[0] == "write median.tif: 0/40"
    assert re.fullmatch(r"write median\.tif: [1-3]?\d/40, \d+\.\d/s, 0:00:0\d left", lines[1]), lines
    assert re.search("40/40.* in 0:00:0", lines[-1])
    ids = {message["content"]["transient"]["display_id"] for message in shown if "data" in message["content"]}
    assert len(ids) == 1, "one line, written over"


@pytest.mark.slow
def test_neither_a_file_nor_a_log_is_disturbed():
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    logging = "from s2composite.logs import log_to_stderr; log_to_stderr('text')\n"
    assert in_terminal(logging + STEPS) == ""
