"""The process that runs one job: ``python -m s2composite.service.process``, the job on stdin.

It ends with whoever started it: the pipe that the job came through stays open, and its end is the signal.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator

from s2composite.errors import S2CompositeError
from s2composite.jobs.schema import Job, load_job
from s2composite.runner.inputs import Which, cell_job
from s2composite.runner.report import write_report
from s2composite.runner.run import JobResult, run_cells, run_job, run_spans

__all__ = ["main"]

FAILED, BAD = 1, 2
"""Exit codes: windows failed and the others are kept; the job, its input or its output is wrong."""

LOG = logging.getLogger("s2composite.service")

Outcome = JobResult | S2CompositeError | None
"""Of a product: None where no scene touches it, an error where it could not be begun."""


def main() -> int:
    """Run the job on stdin; return the exit code."""

    def end_with_parent() -> None:
        sys.stdin.read()
        os.killpg(os.getpgrp(), signal.SIGKILL)

    order = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    job = load_job(order["job"])  # a mapping, so that nothing of this environment is filled in
    LOG.info("job %s: %s", order["id"], order["which"])
    for line in job.to_yaml().splitlines():
        LOG.info("  %s", line)
    products = failed = 0
    try:
        for name, one, outcome in _run_products(job, order["which"]):
            products += 1
            failed += not _log_outcome(name, one, outcome)
    except S2CompositeError as error:
        LOG.error("%s: %s", type(error).__name__, error)  # noqa: TRY400 - the message says it all
        return BAD
    if failed and products > 1:
        LOG.error("%d of %d products failed; the others are kept", failed, products)
    return FAILED if failed else 0


def _run_products(job: Job, which: Which) -> Iterator[tuple[str | None, Job, Outcome]]:
    """Make the products of a job; yield the name, the job and the outcome of each as it ends."""
    if job.span is not None:
        for unit in run_spans(job, announce=False, which=which):
            label = unit.period.label
            if unit.error is not None:
                yield label, unit.job, unit.error
            for cell, result in unit.results:
                if cell is None:
                    yield label, unit.job, result
                else:
                    yield f"{label}, {cell.name}", cell_job(unit.job, cell), result
    elif job.grid is not None:
        for cell, result in run_cells(job, announce=False, which=which):
            yield cell.name, cell_job(job, cell), result
    else:
        yield None, job, run_job(job, announce=False, which=which)


def _log_outcome(name: str | None, job: Job, outcome: Outcome) -> bool:
    """Log the outcome of a product, and write its report; return whether it is complete, or left out."""
    of = "" if name is None else f"{name}: "
    if outcome is None:
        LOG.info("%stoo few scenes touch it, so it is left out", of)
        return True
    if isinstance(outcome, S2CompositeError):
        LOG.error("%s%s", of, outcome)
        return False
    write_report(job)
    counts = (outcome.scenes, outcome.made, outcome.windows, outcome.seconds)
    LOG.info("%s%d scenes, %d windows made of %d, in %.1f s", of, *counts)
    for failure in outcome.failed:
        LOG.error("%swindow %s failed: %s", of, failure.window, failure.error)
    if outcome.error is not None:
        LOG.error("%s%s", of, outcome.error)
    for path in outcome.paths:
        LOG.info("%swritten: %s", of, path)
    return bool(outcome.paths)


if __name__ == "__main__":
    sys.exit(main())
