"""The process that runs one job: ``python -m s2composite.service.process``, the job on stdin.

It ends with its parent: stdin stays open after the job was read, and its end-of-file is the signal.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading

from s2composite.errors import S2CompositeError
from s2composite.jobs.schema import load_job
from s2composite.runner.report import write_report
from s2composite.runner.run import ProductResult, run

__all__ = ["main"]

FAILED, BAD = 1, 2  # exit codes: windows failed and the others are kept; the job, its input or its output is wrong

LOG = logging.getLogger("s2composite.service")


def main() -> int:
    """Run the job on stdin; return the exit code."""

    def end_with_parent() -> None:
        sys.stdin.read()
        os.killpg(os.getpgrp(), signal.SIGKILL)

    order = json.loads(sys.stdin.readline())
    threading.Thread(target=end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    job = load_job(order["job"])  # a mapping, so that no environment variables are substituted
    LOG.info("job %s: %s", order["id"], order["which"])
    for line in job.to_yaml().splitlines():
        LOG.info("  %s", line)
    try:
        products = run(job, announce=False, which=order["which"], on_product=_log_result).products
    except S2CompositeError as error:
        LOG.error("%s: %s", type(error).__name__, error)  # noqa: TRY400 - the message says it all
        return BAD
    failed = sum(not product.complete for product in products)
    if failed and len(products) > 1:
        LOG.error("%d of %d products failed; the others are kept", failed, len(products))
    return FAILED if failed else 0


def _log_result(result: ProductResult) -> None:
    """Log the result of a product, and write its report."""
    of = "" if result.name is None else f"{result.name}: "
    if result.left_out:
        LOG.info("%stoo few scenes touch it, so it is left out", of)
        return
    if result.scenes:  # otherwise nothing was started
        write_report(result.product.job)
        counts = (result.scenes, result.made, result.windows, result.seconds)
        LOG.info("%s%d scenes, %d windows made of %d, in %.1f s", of, *counts)
    for failure in result.failed:
        LOG.error("%swindow %s failed: %s", of, failure.window, failure.error)
    if result.error is not None:
        LOG.error("%s%s", of, result.error)
    for path in result.paths:
        LOG.info("%swritten: %s", of, path)


if __name__ == "__main__":
    sys.exit(main())
