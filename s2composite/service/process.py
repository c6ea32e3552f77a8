"""Process: what runs one job, in a process of its own: ``python -m s2composite.service.process``, the job on stdin.

It ends with whoever started it: the pipe that the job came through stays open, and its end is the signal.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from typing import Any

from s2composite.errors import S2CompositeError
from s2composite.running.jobs.job import Job, load_job
from s2composite.running.reports.page import write_report
from s2composite.running.run import run_job

__all__ = ["main"]

FAILED, BAD = 1, 2
"""Exit codes: windows failed and the others are kept; the job, its input or its output is wrong."""


def main() -> int:
    """Run the job on stdin; return the exit code."""
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    log = logging.getLogger("s2composite.service")
    job = _job(order["job"])
    log.info("job %s: %s", order["id"], order["which"])
    for line in job.to_yaml().splitlines():
        log.info("  %s", line)
    try:
        result = run_job(job, announce=False, which=order["which"])
        write_report(job)
    except S2CompositeError as error:
        log.error("%s: %s", type(error).__name__, error)  # noqa: TRY400 - the message says it all
        return BAD
    log.info("%d scenes, %d windows made of %d, in %.1f s", result.scenes, result.made, result.windows, result.seconds)
    for failure in result.failed:
        log.error("window %s failed: %s", failure.window, failure.error)
    for path in result.paths:
        log.info("written: %s", path)
    return 0 if result.paths else FAILED


def _job(values: dict[str, Any]) -> Job:
    """Return the job that was kept; a mapping, so that nothing of this environment is filled in."""
    return load_job(values)


def _end_with_parent() -> None:
    sys.stdin.read()
    os.killpg(os.getpgrp(), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
