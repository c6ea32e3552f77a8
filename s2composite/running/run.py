"""run_job() and run_cells(): a job from its scenes to its files, resumable at any time."""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distributed import Client, performance_report
from odc.geo.geom import Geometry

from s2composite.clusters.connect import connect
from s2composite.errors import ClusterError, JobError, S2CompositeError
from s2composite.running.cells import Cell, read_area
from s2composite.running.jobs.job import Job, load_job
from s2composite.running.making import Failure, JobResult, Making, finished
from s2composite.running.scope import (
    cell_job,
    job_cells,
    job_composite,
    job_scenes,
    ledger_key,
    require_place,
    require_scenes,
    scenes_within,
)
from s2composite.running.selection import Chosen, Which
from s2composite.running.stream import Entry, make_all
from s2composite.scenes.model import Scene
from s2composite.writing.progress import progress_bar

__all__ = [
    "Begun",
    "Failure",
    "JobResult",
    "begin_product",
    "cell_job",
    "cluster_of",
    "job_cells",
    "job_composite",
    "job_scenes",
    "ledger_key",
    "require_places",
    "run_cells",
    "run_job",
]


def run_job(
    job: Job | str | os.PathLike[str] | Mapping[str, Any],
    *,
    client: Client | None = None,
    announce: bool = True,
    which: Which = "missing",
    error: str | None = None,
    windows: str | Collection[tuple[int, int]] | None = None,
    area: str | Geometry | None = None,
) -> JobResult:
    """Run a job: find its scenes, composite them on its cluster, write the result.

    An interrupted run is resumed: windows already made from the same scenes, parameters and version are not made again.
    The ledger beside the output records what happens. A window with a transient failure is tried again on another
    worker; one that fails for good does not stop the others.

    Parameters
    ----------
    job
        A Job, or what `load_job` takes: the path of a job file, YAML text, a mapping.
    client
        Run on this client instead of the job's own cluster; it stays open.
    announce
        Print the line about the cluster; see `connect`.
    which
        Which of the unfinished windows to make: ``"missing"``, all; ``"untried"``, those that have not failed before;
        ``"failed"``, those that have.
    error
        With ``which="failed"``: only windows whose error matches this regular expression.
    windows
        Only these: a number ``"7"``, a slice ``"1::10"``, row and column ``"3/4"``, several of them with commas; or
        pairs of row and column. The files are written once all windows are done.
    area
        Only windows that the polygons of this GeoJSON file touch.

    Returns
    -------
    JobResult
        What was made, and what failed.

    Raises
    ------
    S2CompositeError
        The job, its scenes, the cluster or the output is wrong; a subclass for each.

    Examples
    --------
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> job = {"source": "doctest_scenes", "output": "doctest.tif", "cluster": {"workers": 1}, "overwrite": True}
    >>> run_job(job, announce=False).scenes
    3
    """
    job = job if isinstance(job, Job) else load_job(job)
    if job.span is not None:
        raise JobError("the job has a span, so it makes many products: run_spans() runs it", key="span")
    if job.grid is not None:
        raise JobError("the job has a grid, so it makes many products: run_cells() runs it", key="grid")
    within = read_area(area) if isinstance(area, str) else area
    start, chosen = time.perf_counter(), Chosen(which, error, windows, within)
    scenes = _prepared(job)
    if (done := finished(job, scenes, chosen, start)) is not None:
        return done  # nothing to start a cluster for
    with cluster_of(job, client, announce=announce) as workers:
        result = job_composite(job, scenes)
        require_scenes(job, result)
        making = Making(job, result, workers, chosen, start)
        label = making.product.files[0].rpartition("/")[2]
        with progress_bar(label, len(making.todo)) as advance:
            for _, outcome in make_all(workers, iter([Entry(None, making)]), job.policy.as_policy()):
                if outcome is not None and outcome.final and outcome.call.about[1] is not None:
                    advance()
        if making.error is not None:
            raise making.error
        return making.result


def run_cells(
    job: Job | str | os.PathLike[str] | Mapping[str, Any],
    *,
    client: Client | None = None,
    announce: bool = True,
    which: Which = "missing",
    error: str | None = None,
    cells: str | None = None,
    area: str | Geometry | None = None,
) -> Iterator[tuple[Cell, JobResult | None]]:
    """Run a job that has a grid: one product for each cell that its area touches, on one cluster.

    Windows of the next cell are made while the last windows of a cell are, and while its files are assembled.

    Parameters
    ----------
    job, client, announce, which, error
        As for `run_job`.
    cells
        Only these: names ``"31TCJ,31TCK"``, a number ``"7"``, a slice ``"1::10"``.
    area
        Only cells that the polygons of this GeoJSON file touch.

    Yields
    ------
    cell, result
        As each cell ends, in any order; None for a cell that too few scenes touch. A cell that cannot be begun or
        finished does not stop the others: its result has ``error``.

    Raises
    ------
    S2CompositeError
        The job, its scenes or the cluster is wrong; a subclass for each.

    Examples
    --------
    >>> from distributed import Client
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> job = {"source": "doctest_scenes", "output": "{cell}.tif", "grid": "EPSG:32631;10;100", "overwrite": True}
    >>> job |= {"bbox": [0.5111, 44.2216, 0.5113, 44.2218]}
    >>> with Client(n_workers=1, processes=False, dashboard_address=":0") as client:
    ...     [(cell.name, result.scenes) for cell, result in run_cells(job, client=client)]
    [('x0301y4899', 3)]
    """
    job = job if isinstance(job, Job) else load_job(job)
    if job.span is not None:
        raise JobError("the job has a span, so it makes many products: run_spans() runs it", key="span")
    within = read_area(area) if isinstance(area, str) else area
    wanted, chosen = job_cells(job, cells, within), Chosen(which, error)
    scenes = _prepared(job)
    with (
        cluster_of(job, client, announce=announce) as workers,
        TemporaryDirectory() as folder,
        progress_bar("cells", len(wanted)) as advance,
    ):
        # Headers are read once for all cells.
        index = str(Path(folder, "headers.index"))
        begun = ((cell, begin_product(job, scenes, cell, workers, chosen, index)) for cell in wanted)
        entries = (Entry(one, one[1].making) for one in begun)
        for entry, outcome in make_all(workers, entries, job.policy.as_policy()):
            if outcome is None:
                cell, product = entry.name
                yield cell, product.result
                advance()


@dataclass(frozen=True, eq=False)
class Begun:
    """A product among many that was begun, or was not."""

    making: Making | None = None
    """What makes it."""

    refused: JobResult | None = None
    """Why it could not be begun."""

    @property
    def result(self) -> JobResult | None:
        """What has been done so far; None: too few scenes touch it."""
        return self.refused if self.making is None else self.making.result


def begin_product(
    job: Job, scenes: tuple[Scene, ...], cell: Cell | None, client: Client, chosen: Chosen, index: str
) -> Begun:
    """Begin the product of a job, or of one of its cells; whatever is wrong with it is its result.

    Parameters
    ----------
    index
        File for the headers of the scenes.

    Raises
    ------
    ClusterError
        No other product would fare better.
    """
    start = time.perf_counter()
    try:
        result = job_composite(job, scenes, None if cell is None else cell.geobox, index)
        if cell is None:
            require_scenes(job, result)
        elif scenes_within(result) < job.policy.min_scenes:
            return Begun()
        return Begun(Making(job if cell is None else cell_job(job, cell), result, client, chosen, start))
    except ClusterError:
        raise
    except S2CompositeError as error:
        shape = (0, 0) if cell is None else (int(cell.geobox.shape.y), int(cell.geobox.shape.x))
        return Begun(refused=JobResult((), time.perf_counter() - start, len(scenes), shape, 0, error=str(error)))


@contextmanager
def cluster_of(job: Job, client: Client | None, *, announce: bool) -> Iterator[Client]:
    """Have a job's cluster, or a client that is given and stays open, as the current one."""
    cluster = connect(job.cluster, announce=announce) if client is None else nullcontext(client)
    with cluster as workers, workers.as_current(), _reported(job.performance_report):
        yield workers


def _prepared(job: Job) -> tuple[Scene, ...]:
    """Return the job's scenes; what can be wrong before there is a cluster is found here."""
    require_places(job)
    return job_scenes(job)


def require_places(job: Job) -> None:
    """Refuse an output, or a place for Dask's report, that cannot be written to.

    Raises
    ------
    WriteError, JobError
        Names the place.
    """
    require_place(job)
    report = job.performance_report
    if report is not None and not os.access(Path(report).parent, os.W_OK):
        raise JobError(
            f"performance_report: cannot write to the directory of {report}; make it first", key="performance_report"
        )


def _reported(path: str | None) -> AbstractContextManager[Any]:
    report: AbstractContextManager[Any] = nullcontext() if path is None else performance_report(filename=path)
    return report
