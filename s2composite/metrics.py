"""Metrics that tasks report to Dask for its dashboard, and the list of workers.

Decoding, kernels and encoding appear for each kind of task on the page "Fine Performance Metrics", next to Dask's own
metrics; `WorkerMeters` adds the totals of each worker to the page "Workers". Outside a worker, metrics have no effect.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from distributed import Client, WorkerPlugin
from distributed.metrics import context_meter

if TYPE_CHECKING:
    from s2composite.reading.reader import ReadTally

__all__ = [
    "WorkerMeters",
    "counted_reads",
    "metered",
    "record_read",
    "record_value",
    "running_workers",
]

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
"""For each column of the table of workers: label and unit of the summed metric, and the divisor."""


def metered(label: str) -> AbstractContextManager[Any]:
    """Return a context whose seconds count as `label`; seconds reported inside it are not counted twice."""
    meter: AbstractContextManager[Any] = context_meter.meter(label)
    return meter


def record_value(label: str, value: float, unit: str) -> None:
    """Add a value to the metric `label`; `unit` is "seconds", "bytes" or "count"."""
    if value:
        context_meter.digest_metric(label, value, unit)


def record_read(tally: ReadTally) -> None:
    """Report the cost of reading a window."""
    record_value("read", tally.bytes, "bytes")
    record_value("read", tally.requests, "count")
    record_value("retry", tally.retries, "count")
    record_value("decode", tally.decode, "seconds")
    record_value("gdal", tally.gdal, "seconds")


@contextmanager
def counted_reads() -> Iterator[Mapping[str, float]]:
    """Count what `record_read` reports in this thread: ``"bytes"`` and the ``"count"`` of requests."""
    reads = dict.fromkeys(("bytes", "count"), 0.0)

    def add(label: Hashable, value: float, unit: str) -> None:
        if label == "read":
            reads[unit] += value

    with context_meter.add_callback(add):
        yield reads


class WorkerMeters(WorkerPlugin):  # type: ignore[misc] # distributed has no types
    """Adds to the dashboard's table of workers the bytes that each has read and stored, and how its time was spent.

    `connect` registers it on clusters that it starts; for others call ``client.register_plugin(WorkerMeters())``.

    Examples
    --------
    >>> from distributed import Client
    >>> with Client(n_workers=1, processes=False, dashboard_address=":0") as client:
    ...     added = client.register_plugin(WorkerMeters())
    ...     client.run(lambda dask_worker: "decode s" in dask_worker.metrics).popitem()[1]
    True
    """

    name = "s2composite-meters"

    def setup(self, worker: Any) -> None:
        """Add the columns; Dask calls this in each worker."""
        for column, measure in _COLUMNS.items():
            worker.metrics[column] = partial(_total, measure)

    def teardown(self, worker: Any) -> None:
        """Remove the columns."""
        for column in _COLUMNS:
            worker.metrics.pop(column, None)


def _total(measure: tuple[str, str, float], worker: Any) -> float:
    label, unit, divisor = measure
    totals = list(worker.digests_total.items())  # keys are ("execute", span, kind of task, label, unit)
    total = sum(n for key, n in totals if key[0] == "execute" and key[-2:] == (label, unit))
    return round(float(total) / divisor, 3)


def running_workers(client: Client) -> Mapping[str, Mapping[str, Any]]:
    """Return the scheduler's information about each worker, by address; empty for an asynchronous client.

    This asks the scheduler, because `Client.scheduler_info` sometimes returns no workers: every two seconds the client
    stores a summary without workers in the same attribute, which a call may return.
    """
    if client.asynchronous:
        return {}
    identity = client.sync(client.scheduler.identity, n_workers=-1)
    return cast("Mapping[str, Mapping[str, Any]]", identity["workers"])
