"""Runs of jobs, resumable at any time: from scenes to files, the windows of all products as one stream of calls."""

from __future__ import annotations

import datetime as dt
import logging
import os
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

from distributed import Client, performance_report
from odc.geo.geom import Geometry

from s2composite.clusters.connect import connect
from s2composite.clusters.submit import Call, Outcome, Policy, run_bounded
from s2composite.cube.composite import Composite
from s2composite.errors import ClusterError, JobError, S2CompositeError, WriteError
from s2composite.jobs.grid import Cell, read_area
from s2composite.jobs.schedule import spans_of, written_out
from s2composite.jobs.schema import Job, load_job
from s2composite.runner.inputs import (
    Chosen,
    Which,
    cell_job,
    job_cells,
    job_composite,
    job_scenes,
    ledger_key,
    require_place,
    require_scenes,
    scenes_within,
)
from s2composite.runner.ledger import (
    Ledger,
    begun_anew,
    busy_tokens,
    done_windows,
    each_event,
    failures_in,
    read_turns,
    rival_in,
    unfinished_other,
    whereabouts,
)
from s2composite.runner.product import Product, WindowMaker, make_window, plan_product, product_state, require_free
from s2composite.scenes.dates import Period
from s2composite.scenes.model import Scene
from s2composite.storage.files import display
from s2composite.writing.options import RasterOptions
from s2composite.writing.staging import Parts
from s2composite.writing.steps import progress_bar

__all__ = [
    "Begun",
    "Entry",
    "Failure",
    "JobResult",
    "Making",
    "SpanJob",
    "SpanResult",
    "begin_product",
    "cell_job",
    "cluster_of",
    "finished",
    "job_cells",
    "job_composite",
    "job_products",
    "job_scenes",
    "ledger_key",
    "make_all",
    "require_places",
    "run_cells",
    "run_job",
    "run_spans",
    "span_jobs",
]

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """A window that could not be made.

    Examples
    --------
    >>> Failure((0, 1), "the file is damaged").window
    (0, 1)
    """

    window: tuple[int, int]
    """Row and column of the window."""

    error: str
    """Why, in words."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a job has done.

    Examples
    --------
    >>> result = JobResult((), 1.5, 12, (512, 512), 4, made=3, failed=(Failure((0, 1), "the file is damaged"),))
    >>> "failed" if result.failed else result.paths
    'failed'
    """

    paths: tuple[str, ...]
    """Files or store written, absolute paths or URLs, the composite first; none if windows failed."""

    seconds: float
    """Wall time from finding the scenes to the last file."""

    scenes: int
    """Scenes that went into the composite."""

    shape: tuple[int, int]
    """Rows and columns of the composite, in pixels."""

    windows: int
    """Windows it is made of."""

    made: int = 0
    """Windows that this run has made; the others were done before."""

    failed: tuple[Failure, ...] = ()
    """Windows that could not be made; the files are written when they have been, see `retry`."""

    error: str | None = None
    """Of one cell among many: what kept it from being begun or finished, other than windows."""


class Making:
    """A product on its way: asked for calls, and told how they ended, until it has ended.

    Its calls come in batches, each of which begins when all calls of the one before have ended: the windows, each level
    of overviews, the files.

    Parameters
    ----------
    job
        What it is the product of.
    composite
        The lazy composite.
    client
        Where its windows are made.
    chosen
        Which of its windows to make.
    start
        When work on it began, of `time.perf_counter`.

    Raises
    ------
    S2CompositeError
        It cannot be begun: the output is there already, or its place cannot be written to.
    """

    def __init__(self, job: Job, composite: Composite, client: Client, chosen: Chosen, start: float) -> None:
        self.product = _product(job, composite)
        self.todo: list[tuple[int, int]] = []
        self.error: S2CompositeError | None = None
        self.ended = False
        self._job, self._client, self._start = job, client, start
        self._open, self._made, self._finished = 0, 0, False
        self._failed: dict[tuple[int, int], str] = {}
        self._events = read_turns(ledger_key(job))
        self._ledger: Ledger | None = None
        self._calls: Iterator[Call] = iter(())
        self._batches = self._all_batches()
        if not chosen.anew(job) and product_state(self.product, self._events) == "skip":
            self.product.output.tidy()
            self._finished = self.ended = True
        else:
            self._begin(chosen)

    def _begin(self, chosen: Chosen) -> None:
        product, job = self.product, self._job
        wanted = chosen.among(product)
        if not job.overwrite:
            require_free(product, self._events)
        self._require_no_rival(chosen)
        self._tell_of_another()
        product.output.begin(busy_tokens(self._events), overwrite=job.overwrite)
        done, failures = product.done(), failures_in(self._events, product.token)
        since = begun_anew(self._events, product.token)
        noted = done_windows(each_event(ledger_key(job)), product.token, since) if done else set()
        open_ = [window for window in product.windows if window in wanted and window not in done]
        self.todo = [window for window in open_ if chosen.takes(window, failures)]
        made_now = {*done, *self.todo}
        self._failed = {window: why for window, why in failures.items() if window not in made_now}
        self._complete = len(made_now) == len(product.windows)
        facts = {"token": product.token, "windows": list(map(len, product.work.spatial)), "done": len(done)}
        facts |= {"todo": len(self.todo), "files": list(product.files), "place": product.output.place}
        self._ledger = Ledger(ledger_key(job), _run_name())
        facts |= {"timeout": job.policy.timeout, "whole": chosen.whole, **whereabouts()}
        self._ledger.add("start", **facts)
        for window in sorted(done - noted):
            self._note("found", window=list(window))

    def _require_no_rival(self, chosen: Chosen) -> None:
        rival = rival_in(self._events, self.product.token) if chosen.whole else None
        if rival is not None:
            raise WriteError(
                f"{self.product.files[0]}: another run is making it, process {rival['process']} since {rival['at']}; "
                "wait for its end, or stop it"
            )

    def _tell_of_another(self) -> None:
        """Say that what an interrupted run of this output has made is of no use, which its user may count on."""
        other = unfinished_other(self._events, self.product.token)
        if other is not None:
            LOG.warning(
                "%s: the run of %s was not finished, and its scenes, its parameters or its version of s2composite were "
                "not the same: what it made is not used, the windows are made anew",
                display(self.product.files[0]), f"{str(other['at'])[:16].replace('T', ' ')} UTC",
            )  # fmt: skip

    def next_call(self) -> Call | None:
        """Return a call to be made; None: there is none now, or it has ended."""
        while not self.ended:
            call = next(self._calls, None)
            if call is not None:
                self._open += 1
                return call
            if self._open:
                return None
            self._go_on()
        return None

    def take(self, outcome: Outcome) -> None:
        """Take in how an attempt of one of its calls ended."""
        window = outcome.call.about[1]
        self._open -= outcome.final
        if window is not None:
            self._note_window(outcome, window)
        elif outcome.error is not None:
            facts = {"step": outcome.call.name, "worker": outcome.worker, "error": str(outcome.error)}
            self._note("failed" if outcome.final else "retry", **facts)
            self.error = _as_ours(outcome.error) if outcome.final else self.error

    @property
    def result(self) -> JobResult:
        """What has been done so far."""
        return replace(
            _result(self.product, self._start),
            paths=self.product.files if self._finished else (),
            made=self._made,
            failed=tuple(Failure(window, why) for window, why in sorted(self._failed.items())),
            error=None if self.error is None else str(self.error),
        )

    def close(self) -> None:
        """End it, finished or not; a second call does nothing."""
        self.ended = True
        if self._ledger is not None:
            ledger, self._ledger = self._ledger, None
            ledger.add("end", token=self.product.token)
            ledger.close()

    def _go_on(self) -> None:
        """Begin the next batch, or end."""
        try:
            batch = None if self.error is not None else next(self._batches, None)
        except S2CompositeError as error:
            self._note("failed", error=str(error))
            self.error, batch = error, None
        if batch is None:
            self._look_for_others()
            self.close()
        else:
            self._calls = iter(batch)

    def _look_for_others(self) -> None:
        """Take what a run elsewhere has finished meanwhile for finished: it took away what this one worked with."""
        if self.error is None and not self._failed:
            return
        with suppress(WriteError):
            events = read_turns(ledger_key(self._job))
            if _products(events) > _products(self._events) and product_state(self.product, events) == "skip":
                self.error, self._failed, self._finished = None, {}, True
                self._note("product", files=list(self.product.files))

    def _all_batches(self) -> Iterator[Iterable[Call]]:
        yield (self._call("make-window", make_window, (self._held, at), at) for at in self.todo)
        if self._failed or not self._complete:
            return
        output = self.product.output
        # From here on final names may be taken: who is interrupted and goes on must know that they are this product's.
        self._note("assemble", files=list(self.product.files))
        for steps in output.steps():
            yield [self._call(step.name, step.function, step.args) for step in steps]
        output.take_names()
        self._note("product", files=list(self.product.files))
        self._finished = True
        output.tidy()
        self._remove_leftovers()

    def _call(self, kind: str, function: Any, args: tuple[Any, ...], window: tuple[int, int] | None = None) -> Call:
        place = "" if window is None else f"-{window[0]}-{window[1]}"
        name = f"{kind}-{self.product.token[:8]}{place}-{uuid.uuid4().hex[:4]}"
        return Call(name, function, args, (self, window))

    @cached_property
    def _held(self) -> Any:
        """What makes windows, on the cluster; whoever loses it gets it from the scheduler again."""
        # A name of its own for each run: one that begins while the scheduler forgets the result of the run before it,
        # under the same name, can wait for ever.
        key = f"send-job-{self.product.token[:8]}-{uuid.uuid4().hex[:8]}"
        return self._client.submit(_hold, self.product.maker, key=key, pure=False)

    def _note_window(self, outcome: Outcome, window: tuple[int, int]) -> None:
        facts: dict[str, Any] = {
            "window": list(window),
            "attempt": outcome.attempt,
            "seconds": round(outcome.seconds, 3),
        }
        if outcome.error is not None:
            facts |= {"worker": outcome.worker, "error": str(outcome.error), "kind": type(outcome.error).__name__}
            self._note("failed" if outcome.final else "retry", **facts)
            if outcome.final:
                self._failed[window] = str(outcome.error)
            return
        done = outcome.result
        facts |= {"worker": done.worker, "read": round(done.read_and_reduce, 3), "encode": round(done.encode, 3)}
        facts |= {"failed_scenes": list(done.failed_scenes)} if done.failed_scenes else {}
        self._note("done", **facts)
        self._made += 1

    def _note(self, event: str, **facts: Any) -> None:
        if self._ledger is not None:
            self._ledger.add(event, token=self.product.token, **facts)

    def _remove_leftovers(self) -> None:
        """Remove what earlier runs with other parameters have left unfinished, but for those that are at work."""
        busy = busy_tokens(read_turns(ledger_key(self._job)))
        for event in self._events:
            token, place = str(event.get("token")), str(event.get("place", ""))
            if token not in (*busy, self.product.token) and place.endswith(f".{token[:12]}.parts"):
                Parts(place, kept=True).clear()


def finished(job: Job, scenes: tuple[Scene, ...], chosen: Chosen, start: float) -> JobResult | None:
    """Return the result of a job that was complete before, None if there is something to do.

    Whoever asks has no cluster yet: headers are read for it only if the ledger says that something was written.
    """
    if chosen.anew(job) or not _products(read_turns(ledger_key(job))):
        return None
    product = _product(job, job_composite(job, scenes))
    events = read_turns(ledger_key(job))
    return _result(product, start) if product_state(product, events) == "skip" else None


def _product(job: Job, composite: Composite) -> Product:
    return plan_product(composite.dataset, job.output, layers=job.layers, options=RasterOptions(**(job.raster or {})))


def _result(product: Product, start: float) -> JobResult:
    """Return the result of a product that is complete and for which nothing was done."""
    stack = product.work.stack
    shape = (int(stack.geobox.shape.y), int(stack.geobox.shape.x))
    return JobResult(product.files, time.perf_counter() - start, len(stack.scenes), shape, len(product.windows))


def _hold(maker: WindowMaker) -> WindowMaker:
    return maker


def _products(events: Iterable[Mapping[str, Any]]) -> int:
    return sum(event["event"] == "product" for event in events)


def _run_name() -> str:
    # Ledgers are read in the order of these names.
    return f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:6]}"


def _as_ours(error: BaseException) -> S2CompositeError:
    return error if isinstance(error, S2CompositeError) else S2CompositeError(f"{type(error).__name__}: {error}")


@dataclass(frozen=True, eq=False)
class Entry:
    """One product among many."""

    name: Any
    """Whatever the caller wants to know it by."""

    making: Making | None
    """None: there is nothing to make."""


def make_all(client: Client, entries: Iterator[Entry], policy: Policy) -> Iterator[tuple[Entry, Outcome | None]]:
    """Make products on a cluster; yield each as it ends, with None, and before that how each attempt of a call ended.

    A product begins when all those before it have handed over all calls that they have at the time. So few are open at
    once: as many as have calls under way.

    Parameters
    ----------
    entries
        Asked for the next one in a thread of its own, while those before are being made.

    Raises
    ------
    ClusterError
        The scheduler is gone.
    """
    with _Agenda(entries) as agenda:
        for outcome in run_bounded(client, agenda, policy):
            making: Making = outcome.call.about[0]
            making.take(outcome)
            yield agenda.entry_of(making), outcome
            yield from ((entry, None) for entry in agenda.ended())
        yield from ((entry, None) for entry in agenda.ended())


class _Agenda(Iterator[Call]):
    """What is to be done: calls of the product begun first, if it has any now, else of the next."""

    def __init__(self, entries: Iterator[Entry]) -> None:
        self._entries = entries
        self._open: list[Entry] = []
        self._ended: list[Entry] = []
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="s2composite-next-product")
        self._coming: Future[Entry | None] | None = self._asked()

    def __next__(self) -> Call:
        while True:
            for entry in list(self._open):
                call = None if entry.making is None else entry.making.next_call()
                if call is not None:
                    return call
                if entry.making is None or entry.making.ended:
                    self._open.remove(entry)
                    self._ended.append(entry)
            # While there is something under way nothing is waited for: it would not be heeded.
            if self._coming is None or (self._open and not self._coming.done()):
                raise StopIteration
            entry_or_none = self._coming.result()
            self._coming = None if entry_or_none is None else self._asked()
            self._open += [] if entry_or_none is None else [entry_or_none]

    def entry_of(self, making: Making) -> Entry:
        """Return the entry of a product that is being made."""
        return next(entry for entry in self._open if entry.making is making)

    def ended(self) -> list[Entry]:
        """Return the products that have ended since this was last asked."""
        ended, self._ended = self._ended, []
        return ended

    def _asked(self) -> Future[Entry | None]:
        # The current client is a variable of the context.
        return self._pool.submit(copy_context().run, self._next)

    def _next(self) -> Entry | None:
        return next(self._entries, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        coming = (
            self._coming.result() if self._coming and self._coming.done() and not self._coming.cancelled() else None
        )
        for entry in [*self._open, *([coming] if coming else [])]:
            if entry.making is not None:
                entry.making.close()


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


_WRITTEN_OUT = ("source", "output", "area")
"""Keys of a job in which templates stand for the date."""


@dataclass(frozen=True, slots=True)
class SpanJob:
    r"""What a job means for one unit of its span.

    Examples
    --------
    >>> job = load_job("source: scenes\noutput: 'm{{pointInTime}}.tif'\nspan: {start: 201204, end: 201204}")
    >>> one = span_jobs(job)[0]
    >>> one.period.label, one.job.datetime
    ('2012-04', '2012-04-01/2012-04-30')
    """

    period: Period
    """The unit."""

    job: Job
    """The job, with its dates and without the span."""


@dataclass(frozen=True, slots=True)
class SpanResult:
    r"""What became of one unit of a span.

    Examples
    --------
    >>> job = load_job("source: scenes\noutput: 'm{{pointInTime}}.tif'\nspan: {start: 201204, end: 201204}")
    >>> one = span_jobs(job)[0]
    >>> result = SpanResult(one.period, one.job, error=S2CompositeError("no scene"))
    >>> result.complete, result.problems()
    (False, ('2012-04: no scene',))
    """

    period: Period
    """The unit."""

    job: Job
    """The job that was run."""

    results: tuple[tuple[Cell | None, JobResult | None], ...] = ()
    """The products: one, or with a grid one for each cell (None: no scene touches it)."""

    error: S2CompositeError | None = None
    """Why there are none."""

    @property
    def complete(self) -> bool:
        """Whether everything was written."""
        return self.error is None and all(result is None or result.paths for _, result in self.results)

    def summary(self) -> str:
        """Return what was made, and below it the files."""
        products = [result for _, result in self.results if result is not None]
        made, seconds = sum(result.made for result in products), sum(result.seconds for result in products)
        head = f"{self.period.label}: {made} window{'s' * (made != 1)} made in {seconds:.1f} s"
        return "\n".join([head, *(path for result in products for path in result.paths)])

    def problems(self) -> tuple[str, ...]:
        """Return what failed, a line each."""
        label = self.period.label
        lines = [] if self.error is None else [f"{label}: {self.error}"]
        for cell, result in self.results:
            name = label if cell is None else f"{label}, {cell.name}"
            if result is not None and not result.paths:
                lines += [f"{name}: window {failure.window}: {failure.error}" for failure in result.failed[:3]]
                lines += [f"{name}: {len(result.failed)} windows in all"] if len(result.failed) > 3 else []
                lines += [f"{name}: {result.error}"] if result.error else []
        return tuple(lines)


def span_jobs(job: Job, since: str | None = None, today: dt.date | None = None) -> tuple[SpanJob, ...]:
    r"""Return the jobs that a job with a span stands for, in order of time.

    Parameters
    ----------
    job
        With a span.
    since, today
        As for `run_spans`.

    Raises
    ------
    JobError
        It has no span, or two units would have one output.
    ParameterError
        Nothing of the span is over.

    Examples
    --------
    >>> job = load_job("source: scenes\noutput: 'm{{pointInTime}}.tif'\nspan: {start: 201204, end: 201205}")
    >>> [(one.job.output, one.job.datetime) for one in span_jobs(job)]
    [('m201204.tif', '2012-04-01/2012-04-30'), ('m201205.tif', '2012-05-01/2012-05-31')]
    """
    if job.span is None:
        raise JobError("the job has no span; run_job() runs it once", key="span")
    step = job.span.step
    jobs = [SpanJob(period, _for_period(job, period)) for period in spans_of(job.span, since, today)]
    outputs: dict[str, Period] = {}
    for one in jobs:
        other = outputs.setdefault(one.job.output, one.period)
        if other is not one.period:
            raise JobError(
                f"output: {other.label} and {one.period.label} would both be {one.job.output}; "
                f"write the whole {step} with {{{{pointInTime}}}}",
                key="output",
            )
    return tuple(jobs)


def job_products(job: Job) -> Iterator[tuple[str | None, Job]]:
    r"""Yield the name and the job of each unit of a span and each cell of a grid; of others the job, without a name.

    Examples
    --------
    >>> job = load_job("source: scenes\noutput: 'm{{pointInTime}}.tif'\nspan: {start: 201204, end: 201205}")
    >>> [name for name, one in job_products(job)]
    ['2012-04', '2012-05']
    """
    if job.span is not None:
        for unit in span_jobs(job):
            for name, one in job_products(unit.job):
                yield unit.period.label if name is None else f"{unit.period.label}, {name}", one
    elif job.grid is not None:
        yield from ((cell.name, cell_job(job, cell)) for cell in job_cells(job))
    else:
        yield None, job


def _for_period(job: Job, period: Period) -> Job:
    assert job.span is not None
    unit = job.span.step

    def filled(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(filled, value))
        return written_out(value, period, unit) if isinstance(value, str) else value

    texts = {key: filled(getattr(job, key)) for key in _WRITTEN_OUT}
    dates = f"{period.start}/{period.end - dt.timedelta(days=1)}"
    return job.model_copy(update={**texts, "datetime": dates, "span": None})


def run_spans(
    job: Job | str | os.PathLike[str] | Mapping[str, Any],
    *,
    since: str | None = None,
    today: dt.date | None = None,
    client: Client | None = None,
    announce: bool = True,
    which: Which = "missing",
    error: str | None = None,
    windows: str | Collection[tuple[int, int]] | None = None,
    cells: str | None = None,
    area: str | Geometry | None = None,
) -> Iterator[SpanResult]:
    """Run a job for each month, day or year of its span, all on one cluster.

    Each has its own output and ledger, so an interrupted run is resumed and nothing complete is made again. A unit that
    fails, such as a month without scenes, does not stop the others. Windows of the
    next unit are made while the files of the one before are assembled.

    Parameters
    ----------
    job
        A job with ``span``; as for `run_job`.
    since
        ``"last"``: only the unit that ended last, for a monthly cron job. A date: that unit and all later ones.
    today
        The day that decides which units have ended; default: today in UTC.
    client, announce, which, error
        As for `run_job`.
    windows, area
        Of each unit, only these windows, as for `run_job`.
    cells, area
        If the job has a grid: only these cells, as for `run_cells`.

    Yields
    ------
    SpanResult
        As each unit ends, in order of time: one that ends before another that is earlier waits for it.

    Raises
    ------
    S2CompositeError
        The job or its span is wrong, or the cluster does not answer.

    Examples
    --------
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> job = {"source": "doctest_scenes", "output": "{{pointInTime}}.tif", "cluster": {"workers": 1}}
    >>> job |= {"span": {"start": "2023-07", "end": "2023-08"}, "overwrite": True}
    >>> [(one.period.label, one.complete) for one in run_spans(job, announce=False)]
    [('2023-07', True), ('2023-08', True)]
    """
    job = job if isinstance(job, Job) else load_job(job)
    require_places(job)
    jobs = span_jobs(job, since, today)
    within = read_area(area) if isinstance(area, str) else area
    chosen = Chosen(which, error) if job.grid is not None else Chosen(which, error, windows, within)
    ended: dict[Period, list[_Part]] = {one.period: [] for one in jobs}
    with (
        cluster_of(job, client, announce=announce) as workers,
        TemporaryDirectory() as folder,
        progress_bar(f"{job.span.step}s" if job.span is not None else "", len(jobs)) as advance,
    ):
        parts = (part for one in jobs for part in _parts(one, workers, chosen, folder, cells, within))
        entries = (Entry(part, part.begun.making) for part in parts)
        for entry, outcome in make_all(workers, entries, job.policy.as_policy()):
            part: _Part = entry.name
            if outcome is not None:
                continue
            ended[part.unit.period].append(part)
            if len(ended[part.unit.period]) == part.siblings:
                advance()
            for period in _leading(ended):
                yield _span_result(ended.pop(period))


@dataclass(frozen=True, eq=False)
class _Part:
    """One product of one unit."""

    unit: SpanJob
    """The unit."""

    cell: Cell | None
    """Which of its cells; None: it has no grid."""

    siblings: int
    """Products of the unit, this one included."""

    begun: Begun
    """The product."""

    error: S2CompositeError | None = None
    """Why the unit has no products at all."""


def _parts(
    one: SpanJob, client: Client, chosen: Chosen, folder: str, names: str | None, within: Geometry | None
) -> Iterator[_Part]:
    """Begin the products of a unit, one after the other as they are asked for."""
    try:
        cells = [None] if one.job.grid is None else job_cells(one.job, names, within)
        scenes = job_scenes(one.job)
    except S2CompositeError as error:
        yield _Part(one, None, 1, Begun(), error)
        return
    # Headers are read once for all cells of a unit.
    index = str(Path(folder, f"{one.period.start}.index"))
    for cell in cells:
        yield _Part(one, cell, len(cells), begin_product(one.job, scenes, cell, client, chosen, index))


def _leading(ended: Mapping[Period, list[_Part]]) -> list[Period]:
    """Return those units, from the first on, all of whose products have ended."""
    whole = takewhile(lambda item: item[1] and len(item[1]) == item[1][0].siblings, ended.items())
    return [period for period, _ in whole]


def _span_result(parts: list[_Part]) -> SpanResult:
    unit = parts[0].unit
    if parts[0].error is not None:
        return SpanResult(unit.period, unit.job, error=parts[0].error)
    return SpanResult(unit.period, unit.job, tuple((part.cell, part.begun.result) for part in parts))
