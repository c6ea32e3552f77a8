"""Making: one product on its way, from its windows to its final name, every step noted in its ledger."""

from __future__ import annotations

import datetime as dt
import logging
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from distributed import Client

from s2composite.compositing import Composite
from s2composite.errors import S2CompositeError, WriteError
from s2composite.running.bounded import Call, Outcome
from s2composite.running.history import (
    begun_anew,
    busy_tokens,
    done_windows,
    failures_in,
    rival_in,
    unfinished_other,
    whereabouts,
)
from s2composite.running.jobs.job import Job
from s2composite.running.ledger import Ledger, each_event, read_turns
from s2composite.running.products.product import Product, plan_product, product_state, require_free
from s2composite.running.products.window import WindowMaker, make_window
from s2composite.running.scope import job_composite, ledger_key
from s2composite.running.selection import Chosen
from s2composite.scenes.model import Scene
from s2composite.scenes.storage import display
from s2composite.writing.options import RasterOptions
from s2composite.writing.parts import Parts

LOG = logging.getLogger(__name__)

__all__ = ["Failure", "JobResult", "Making", "finished"]


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
