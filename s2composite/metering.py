"""Metering: what tasks tell Dask about themselves, to be seen on its dashboard.

Decoding, kernels and encoding appear on the page "Fine Performance Metrics", beside what Dask measures itself, for each
kind of task; `WorkerMeters` puts the sums of each worker on the page "Workers". Outside of a worker nobody listens.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from distributed import WorkerPlugin
from distributed.metrics import context_meter

if TYPE_CHECKING:  # a worker that begins with WorkerMeters need not wait for what reads files
    from s2composite.reading.observe import ReadTally

__all__ = ["WorkerMeters", "metered", "tell", "tell_read"]

_COLUMNS = {
    "read MB": ("read", "bytes", 1e6),
    "requests": ("read", "count", 1),
    "retries": ("retry", "count", 1),
    "decode s": ("decode", "seconds", 1),
    "GDAL s": ("gdal", "seconds", 1),
    "kernel s": ("kernel", "seconds", 1),
    "encode s": ("encode", "seconds", 1),
    "stored MB": ("store", "bytes", 1e6),
}
"""For each column of the table of workers the label and unit of what is summed up, and what it is divided by."""


def metered(label: str) -> AbstractContextManager[Any]:
    """Return a context whose seconds count as `label`; those that are told inside of it are not counted again."""
    meter: AbstractContextManager[Any] = context_meter.meter(label)
    return meter


def tell(label: str, value: float, unit: str) -> None:
    """Count a value as `label`: "seconds", "bytes" or a "count"."""
    if value:
        context_meter.digest_metric(label, value, unit)


def tell_read(tally: ReadTally) -> None:
    """Count what reading a window has taken."""
    tell("read", tally.bytes, "bytes")
    tell("read", tally.requests, "count")
    tell("retry", tally.retries, "count")
    tell("decode", tally.decode, "seconds")
    tell("gdal", tally.gdal, "seconds")


class WorkerMeters(WorkerPlugin):  # type: ignore[misc] # distributed has no types
    """Adds to the dashboard's table of workers what each has read and stored since it began, and what took its time.

    `connect` puts it into the workers of clusters that it starts. Else: ``client.register_plugin(WorkerMeters())``.

    Examples
    --------
    >>> from distributed import Client
    >>> with Client(n_workers=1, processes=False, dashboard_address=":0") as client:
    ...     told = client.register_plugin(WorkerMeters())
    ...     client.run(lambda dask_worker: "decode s" in dask_worker.metrics).popitem()[1]
    True
    """

    name = "s2composite-meters"

    def setup(self, worker: Any) -> None:
        """Add the columns; Dask calls this in each worker."""
        for column, measure in _COLUMNS.items():
            worker.metrics[column] = partial(_total, measure)

    def teardown(self, worker: Any) -> None:
        """Take the columns away."""
        for column in _COLUMNS:
            worker.metrics.pop(column, None)


def _total(measure: tuple[str, str, float], worker: Any) -> float:
    """Return the sum that a worker's tasks have told."""
    label, unit, divisor = measure
    told = list(worker.digests_total.items())  # keys are ("execute", span, kind of task, label, unit)
    total = sum(n for key, n in told if key[0] == "execute" and key[-2:] == (label, unit))
    return round(float(total) / divisor, 3)
