"""Runs of jobs, resumable at any time: from scenes to files, the windows of all products as one stream of calls."""

from __future__ import annotations

import datetime as dt
import logging
import os
import time
import uuid
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, nullcontext, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

from distributed import Client, performance_report
from odc.geo.geom import Geometry

from s2composite.clusters.connect import connect
from s2composite.clusters.submit import ClusterCall, Outcome, Policy, run_bounded
from s2composite.cube.composite import Composite
from s2composite.errors import ClusterError, S2CompositeError, WriteError, plural
from s2composite.jobs.schema import Job
from s2composite.runner.inputs import (
    ProductJob,
    Selection,
    Which,
    job_scenes,
    ledger_key,
    product_composite,
    require_kind,
    require_places,
    scenes_of_products,
    select_windows,
    selected_products,
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
from s2composite.scenes.model import Scene
from s2composite.storage.files import display
from s2composite.writing.staging import Parts
from s2composite.writing.steps import progress_bar

__all__ = ["Failure", "JobResult", "ProductResult", "ProductRun", "run", "run_cells", "run_job", "run_spans"]

LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Failure:
    """A window, by row and column, that could not be made, and the error that says why."""

    window: tuple[int, int]
    error: str


@dataclass(frozen=True, slots=True)
class ProductResult:
    r"""What a run has done for one product.

    Examples
    --------
    >>> from s2composite import load_job
    >>> from s2composite.runner.inputs import expand
    >>> job = load_job("source: scenes\noutput: 'm{{pointInTime}}.tif'\nspan: {start: 201204, end: 201204}")
    >>> (product,) = expand(job)
    >>> result = ProductResult(product, error="no scene")
    >>> result.complete, result.problems()
    (False, ('2012-04: no scene',))
    """

    product: ProductJob = field(repr=False)
    """Which one: its name, period and cell, and what the job means for it."""
    paths: tuple[str, ...] = ()
    """Files or store written, absolute paths or URLs, the composite first; none if windows failed."""
    seconds: float = 0.0
    """Wall time from finding the scenes to the last file."""
    scenes: int = 0
    """Scenes that went into the composite."""
    shape: tuple[int, int] = (0, 0)
    """Rows and columns of the composite, in pixels."""
    windows: int = 0
    """Windows it is made of."""
    made: int = 0
    """Windows that this run has made; the others were done before."""
    failed: tuple[Failure, ...] = ()
    """Windows that could not be made; the files are written when they have been."""
    error: str | None = None
    """What kept it from being begun or finished, other than windows."""
    left_out: bool = False
    """It is a cell that fewer scenes touch than ``policy.min_scenes``."""

    @property
    def name(self) -> str | None:
        """Its name among the products of the job; None: it is the only one."""
        return self.product.name

    @property
    def complete(self) -> bool:
        """Whether everything was written that is to be."""
        return self.left_out or bool(self.paths)

    def summary(self) -> str:
        """Return what was made, and below it the files."""
        head = f"{plural(self.made, 'window')} made in {self.seconds:.1f} s"
        return "\n".join([head if self.name is None else f"{self.name}: {head}", *self.paths])

    def problems(self) -> tuple[str, ...]:
        """Return what failed, a line each."""
        lines = [f"window {failure.window}: {failure.error}" for failure in self.failed[:3]]
        lines += [f"{len(self.failed)} windows in all"] if len(self.failed) > 3 else []
        lines += [self.error] if self.error else []
        return tuple(line if self.name is None else f"{self.name}: {line}" for line in lines)


@dataclass(frozen=True, slots=True)
class JobResult:
    r"""What a run of a job has done: a result for each product, and what they come to together.

    Examples
    --------
    >>> from s2composite import load_job
    >>> job = load_job("source: scenes\noutput: median.tif")
    >>> failed = (Failure((0, 1), "the file is damaged"),)
    >>> result = JobResult((ProductResult(ProductJob(job), windows=4, made=3, failed=failed),), 1.5)
    >>> result.made, result.complete
    (3, False)
    """

    products: tuple[ProductResult, ...]
    """In the order of the job: units of the span by time, cells of the grid by name."""
    seconds: float
    """Wall time of the run."""

    @property
    def complete(self) -> bool:
        """Whether everything was written."""
        return all(product.complete for product in self.products)

    @property
    def paths(self) -> tuple[str, ...]:
        """Files and stores written, absolute paths or URLs; of each product the composite first."""
        return tuple(path for product in self.products for path in product.paths)

    @property
    def scenes(self) -> int:
        """Scenes that went into the composite; of several products those of the one that has most."""
        return max((product.scenes for product in self.products), default=0)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns, in pixels, of the first product."""
        return self.products[0].shape

    @property
    def windows(self) -> int:
        """Windows of all products."""
        return sum(product.windows for product in self.products)

    @property
    def made(self) -> int:
        """Windows that this run has made; the others were done before."""
        return sum(product.made for product in self.products)

    @property
    def failed(self) -> tuple[Failure, ...]:
        """Windows that could not be made; the files of their product are written when they have been."""
        return tuple(failure for product in self.products for failure in product.failed)


def run(
    job: Job | str | os.PathLike[str] | Mapping[str, Any],
    *,
    client: Client | None = None,
    announce: bool = True,
    which: Which = "missing",
    error: str | None = None,
    windows: str | Collection[tuple[int, int]] | None = None,
    cells: str | None = None,
    area: str | Geometry | None = None,
    since: str | None = None,
    today: dt.date | None = None,
    on_product: Callable[[ProductResult], None] | None = None,
) -> JobResult:
    """Run a job: find its scenes, composite them on its cluster, write the result.

    A job with a grid makes a product for each cell that its area touches, one with a span a product for each month, day
    or year: each with an output and a ledger of its own, all on one cluster. Windows of the next product are made while
    the files of the one before are assembled.

    An interrupted run is resumed: windows already made from the same scenes, parameters and version are not made again.
    The ledger beside each output records what happens. A window with a transient failure is tried again on another
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
        pairs of row and column. The files are written once all windows are done. Not for a job with a grid.
    cells
        If the job has a grid, only these cells: names ``"31TCJ,31TCK"``, a number ``"7"``, a slice ``"1::10"``.
    area
        Only windows, or cells, that the polygons of this GeoJSON file touch.
    since
        If the job has a span: ``"last"``, only the unit that ended last, for a monthly cron job; a date, that unit and
        all later ones.
    today
        The day that decides which units have ended; default: today in UTC.
    on_product
        Called with the result of each product in the order of the job, as soon as it and those before it have ended.

    Returns
    -------
    JobResult
        What was made, and what failed, for each product. Of several, one that cannot be begun or finished, such as a
        month without scenes, does not stop the others: its result has an `error`.

    Raises
    ------
    S2CompositeError
        The job, its scenes, the cluster or, where there is one product, the output is wrong; a subclass for each.

    Examples
    --------
    >>> from s2composite.demo import make_scenes
    >>> files = make_scenes("doctest_scenes", scenes=3, size=256)
    >>> job = {"source": "doctest_scenes", "output": "doctest.tif", "cluster": {"workers": 1}, "overwrite": True}
    >>> run(job, announce=False).scenes
    3
    >>> months = {"output": "{{pointInTime}}.tif", "span": {"start": "2023-07", "end": "2023-08"}}
    >>> [(product.name, product.complete) for product in run({**job, **months}, announce=False).products]
    [('2023-07', True), ('2023-08', True)]
    """
    start = time.perf_counter()
    job, products, within = selected_products(job, since, today, windows, cells, area)
    selection = Selection(which, error, windows, within)
    # What can be wrong before there is a cluster is found here.
    require_places(job)
    scenes = job_scenes(job) if job.span is None else None
    single = job.span is None and job.grid is None
    if single and scenes is not None and (done := _complete_before(products[0], scenes, selection, start)) is not None:
        if on_product is not None:
            on_product(done)
        return JobResult((done,), time.perf_counter() - start)
    cluster = connect(job.cluster, announce=announce) if client is None else nullcontext(client)
    report = job.performance_report
    with (
        cluster as workers,
        workers.as_current(),
        nullcontext() if report is None else performance_report(filename=report),
        TemporaryDirectory() as folder,
    ):
        begun = _begin(scenes_of_products(products, folder, scenes), workers, selection, single=single)
        only: ProductRun | None = None
        label, total = f"{job.span.step}s" if job.span is not None and job.grid is None else "cells", len(products)
        if single:
            only = next(one for one in begun if isinstance(one, ProductRun))  # what is wrong with it is raised
            begun = iter([only])
            label, total = only.product.files[0].rpartition("/")[2], len(only.todo)
        ended: dict[ProductJob, ProductResult] = {}
        results: list[ProductResult] = []  # in the order of the job
        with (
            progress_bar(label, total) as advance,
            closing(_make_all(workers, begun, job.policy.as_policy())) as events,
        ):
            for event in events:
                if isinstance(event, Outcome):
                    if only is not None and event.final and event.call.about[1] is not None:
                        advance()
                    continue
                if only is not None and only.error is not None:
                    raise only.error
                if only is None:
                    advance()
                ended[event.product] = event
                while len(results) < len(products) and products[len(results)] in ended:
                    results.append(ended[products[len(results)]])
                    if on_product is not None:
                        on_product(results[-1])
    return JobResult(tuple(results), time.perf_counter() - start)


def _complete_before(
    product: ProductJob, scenes: tuple[Scene, ...], selection: Selection, start: float
) -> ProductResult | None:
    """Return the result of a product that was complete before; None if there is something to do.

    There is no cluster yet: headers are read only if the ledger says that something was written.
    """
    job = product.job
    events = () if selection.replaces(job) else read_turns(ledger_key(job))
    if not _times_completed(events) or (composite := product_composite(product, scenes, "")) is None:
        return None
    planned = plan_product(job, composite.dataset)
    return _result(product, planned, start, planned.files) if product_state(planned, events) == "skip" else None


def _result(product: ProductJob, planned: Product, start: float, paths: tuple[str, ...], **more: Any) -> ProductResult:
    stack, seconds = planned.work.stack, time.perf_counter() - start
    shape = (int(stack.geobox.shape.y), int(stack.geobox.shape.x))
    return ProductResult(product, paths, seconds, len(stack.scenes), shape, len(planned.windows), **more)


def _times_completed(events: Iterable[Mapping[str, Any]]) -> int:
    return sum(event["event"] == "product" for event in events)


# --- all products -----------------------------------------------------------------------------------------------------


def _begin(
    found: Iterable[tuple[ProductJob, tuple[Scene, ...] | S2CompositeError, str]],
    client: Client,
    selection: Selection,
    *,
    single: bool,
) -> Iterator[ProductRun | ProductResult]:
    """Begin products one after the other as they are asked for; what is wrong with one of several is its result."""
    for product, scenes, index in found:
        start = time.perf_counter()
        try:
            composite = product_composite(product, scenes, index)
            if composite is None:
                yield ProductResult(product, left_out=True)
            else:
                yield ProductRun(product, composite, client, selection, start)
        except ClusterError:
            raise  # no other product would fare better
        except S2CompositeError as error:
            if single:
                raise
            shape = (0, 0) if product.cell is None else tuple(map(int, product.cell.geobox.shape))
            number = 0 if isinstance(scenes, S2CompositeError) else len(scenes)
            seconds = time.perf_counter() - start
            yield ProductResult(product, (), seconds, number, (shape[0], shape[1]), error=str(error))


def _make_all(
    client: Client, begun: Iterator[ProductRun | ProductResult], policy: Policy
) -> Generator[Outcome | ProductResult, None, None]:
    """Make products on a cluster; yield how each attempt of a call ended, and the result of each product as it ends."""
    under_way: list[ProductRun] = []
    ended: list[ProductResult] = []
    with closing(_calls(begun, under_way, ended)) as calls:
        try:
            with closing(run_bounded(client, calls, policy)) as outcomes:
                for outcome in outcomes:
                    outcome.call.about[0].record(outcome)
                    yield outcome
                    while ended:
                        yield ended.pop(0)
            yield from ended
        finally:
            for run in under_way:
                run.close()


def _calls(
    begun: Iterator[ProductRun | ProductResult], under_way: list[ProductRun], ended: list[ProductResult]
) -> Generator[ClusterCall | None, None, None]:
    """Yield the calls of the product begun first, if it has any now, else of the next; None where nobody has one now.

    A product begins when those before it have handed over all calls that they have at the time. So few are open at
    once: as many as have calls under way. The next one is begun in a thread of its own, while those before are made.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix="s2composite-next-product")

    def ask() -> Future[ProductRun | ProductResult | None]:
        # The current client is a variable of the context.
        return pool.submit(copy_context().run, lambda: next(begun, None))

    coming: Future[ProductRun | ProductResult | None] | None = ask()
    try:
        while under_way or coming is not None:
            call = None
            for run in list(under_way):
                call = next(run.calls, None)
                if call is not None:
                    break
                if run.ended:
                    under_way.remove(run)
                    ended.append(run.result)
            if call is not None:
                yield call
            elif coming is not None and (coming.done() or not under_way):
                one = coming.result()
                coming = None if one is None else ask()
                if isinstance(one, ProductRun):
                    under_way.append(one)
                elif one is not None:
                    ended.append(one)
            elif under_way:
                # While there is something under way nothing is waited for: it would not be heeded.
                yield None
    finally:
        pool.shutdown(cancel_futures=True)
        if coming is not None and not coming.cancelled() and coming.exception() is None:
            one = coming.result()
            if isinstance(one, ProductRun):
                one.close()


# --- one product ------------------------------------------------------------------------------------------------------


class ProductRun:
    """The making of one product: its calls, in order, and a record of how they ended.

    `calls` yields the windows, then each level of overviews, then the files; None as long as calls have to end before
    there are others. Where it ends, the product has `ended`. One that cannot be begun is an error here.
    """

    def __init__(
        self, source: ProductJob, composite: Composite, client: Client, selection: Selection, start: float
    ) -> None:
        job = source.job
        self.product = plan_product(job, composite.dataset)
        self.todo: list[tuple[int, int]] = []
        self.error: S2CompositeError | None = None
        self.ended = False
        self._source, self._job, self._client, self._start = source, job, client, start
        self._open, self._made, self._written, self._all_windows = 0, 0, False, False
        self._failed: dict[tuple[int, int], str] = {}
        self._events = read_turns(ledger_key(job))
        self._ledger: Ledger | None = None
        if not selection.replaces(job) and product_state(self.product, self._events) == "skip":
            self.product.output.tidy()
            self._written = True
        else:
            self._open_ledger(selection)
        self.calls = self._all_calls()

    def _open_ledger(self, selection: Selection) -> None:
        product, job, events = self.product, self._job, self._events
        stack, token = product.work.stack, product.token
        wanted = select_windows(stack.geobox, product.work.spatial, selection.windows, selection.area)
        if not job.overwrite:
            require_free(product, events)
        rival = rival_in(events, token) if selection.whole else None
        if rival is not None:
            raise WriteError(
                f"{product.files[0]}: another run is making it, process {rival['process']} since {rival['at']}; "
                "wait for its end, or stop it"
            )
        other = unfinished_other(events, token)
        if other is not None:
            LOG.warning(
                "%s: the run of %s was not finished, and its scenes, its parameters or its version of s2composite were "
                "not the same: what it made is not used, the windows are made anew",
                display(product.files[0]), f"{str(other['at'])[:16].replace('T', ' ')} UTC",
            )  # fmt: skip
        product.output.begin(busy_tokens(events), overwrite=job.overwrite)
        done, failures = product.output.done(), failures_in(events, token)
        noted = done_windows(each_event(ledger_key(job)), token, begun_anew(events, token)) if done else set()
        unfinished = [window for window in product.windows if window in wanted and window not in done]
        self.todo = [window for window in unfinished if selection.includes(window, failures)]
        made_now = {*done, *self.todo}
        self._failed = {window: why for window, why in failures.items() if window not in made_now}
        self._all_windows = len(made_now) == len(product.windows)
        # Ledgers are read in the order of the names of runs.
        self._ledger = Ledger(ledger_key(job), f"{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:6]}")
        self._ledger.add(
            "start",
            token=token,
            windows=list(map(len, product.work.spatial)),
            done=len(done),
            todo=len(self.todo),
            files=list(product.files),
            place=product.output.place,
            timeout=job.policy.timeout,
            whole=selection.whole,
            **whereabouts(),
        )
        for window in sorted(done - noted):
            self._note("found", window=list(window))

    def _all_calls(self) -> Iterator[ClusterCall | None]:
        if self._ledger is not None:
            try:
                yield from self._windows_and_files()
            except S2CompositeError as error:
                self._note("failed", error=str(error))
                self.error = error
            if self.error is not None or self._failed:
                # What a run elsewhere has finished meanwhile is finished: it took away what this one worked with.
                with suppress(WriteError):
                    events = read_turns(ledger_key(self._job))
                    completed_meanwhile = _times_completed(events) > _times_completed(self._events)
                    if completed_meanwhile and product_state(self.product, events) == "skip":
                        self.error, self._failed, self._written = None, {}, True
                        self._note("product", files=list(self.product.files))
        self.close()

    def _windows_and_files(self) -> Iterator[ClusterCall | None]:
        product, output = self.product, self.product.output
        if self.todo:
            # On the cluster, whence whoever loses it gets it again. It has a name of its own for each run: one that
            # begins while the scheduler forgets the result of the run before, under the same name, can wait for ever.
            key = f"send-job-{product.token[:8]}-{uuid.uuid4().hex[:8]}"
            made_of = WindowMaker(product.work, output.writer)
            maker = self._client.submit(lambda maker: maker, made_of, key=key, pure=False)
            for at in self.todo:
                name = f"make-window-{product.token[:8]}-{at[0]}-{at[1]}"
                yield self._call(name, make_window, (maker, at), at)
        yield from self._barrier()
        if self._failed or not self._all_windows:
            return
        # From here on final names may be taken: who is interrupted and goes on must know that they are this product's.
        self._note("assemble", files=list(product.files))
        for steps in output.steps():
            for call in steps:
                yield self._call(call.name, call.function, call.args)
            yield from self._barrier()
            if self.error is not None:
                return
        output.take_names()
        self._note("product", files=list(product.files))
        self._written = True
        output.tidy()
        # What earlier runs with other parameters have left unfinished, but for those that are at work.
        busy = busy_tokens(read_turns(ledger_key(self._job)))
        for event in self._events:
            token, place = str(event.get("token")), str(event.get("place", ""))
            if token not in (*busy, product.token) and place.endswith(f".{token[:12]}.parts"):
                Parts(place, kept=True).clear()

    def _barrier(self) -> Iterator[None]:
        while self._open:
            yield None

    def _call(
        self, name: str, function: Any, args: tuple[Any, ...], window: tuple[int, int] | None = None
    ) -> ClusterCall:
        self._open += 1
        return ClusterCall(f"{name}-{uuid.uuid4().hex[:4]}", function, args, (self, window))

    def record(self, outcome: Outcome) -> None:
        """Take in how an attempt of one of its calls ended."""
        window, error = outcome.call.about[1], outcome.error
        self._open -= outcome.final
        about: dict[str, Any] = {}
        if window is not None:
            about = {"window": list(window), "attempt": outcome.attempt, "seconds": round(outcome.seconds, 3)}
        if error is not None:
            about |= {"step": outcome.call.name} if window is None else {"kind": type(error).__name__}
            self._note("failed" if outcome.final else "retry", **about, worker=outcome.worker, error=str(error))
            if outcome.final and window is not None:
                self._failed[window] = str(error)
            elif outcome.final:
                foreign = S2CompositeError(f"{type(error).__name__}: {error}")
                self.error = error if isinstance(error, S2CompositeError) else foreign
        elif window is not None:
            self._note("done", **about, **outcome.result)
            self._made += 1

    @property
    def result(self) -> ProductResult:
        """What has been done so far."""
        return _result(
            self._source,
            self.product,
            self._start,
            paths=self.product.files if self._written else (),
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

    def _note(self, event: str, **about: Any) -> None:
        if self._ledger is not None:
            self._ledger.add(event, token=self.product.token, **about)


# --- the names before `run`, which stay for one release ---------------------------------------------------------------


def run_job(job: Job | str | os.PathLike[str] | Mapping[str, Any], **options: Any) -> JobResult:
    """Run a job that makes one product: the old name of `run`, which takes every job."""
    return run(require_kind(job, "run"), **options)


def run_cells(
    job: Job | str | os.PathLike[str] | Mapping[str, Any], **options: Any
) -> Iterator[tuple[Any, ProductResult | None]]:
    """Run a job with a grid; yield each cell and its result, None for one that too few scenes touch. Use `run`."""
    for one in run(require_kind(job, "run", grid=True), **options).products:
        yield one.product.cell, None if one.left_out else one


def run_spans(job: Job | str | os.PathLike[str] | Mapping[str, Any], **options: Any) -> Iterator[ProductResult]:
    """Run a job with a span; yield the result of each product. Use `run`."""
    yield from run(require_kind(job, "run", span=True), **options).products
