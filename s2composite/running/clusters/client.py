"""What all kinds of clusters share: a client that owns its cluster, the environment of workers, our own errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from distributed import Client, WorkerPlugin

from s2composite.errors import ClusterError, JobError, S2CompositeError
from s2composite.metering import WorkerMeters
from s2composite.running.clusters.kind import KindOptions

__all__ = [
    "ONE_THREAD",
    "ClusterClient",
    "ShippedEnvironment",
    "await_workers",
    "client_of",
    "one_thread",
    "ship",
    "show_meters",
    "started",
    "values_to_ship",
]

LOG = logging.getLogger(__name__)

ONE_THREAD = ("NUMBA_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
"""Set to 1 in workers that are started here: Dask's own threads use the cores."""


class ClusterClient(Client):  # type: ignore[misc] # distributed has no types
    """A Client that closes the cluster started for it, and knows which environment its workers were given."""

    closes: Callable[[], Any] | None = None
    """Closes the cluster, after the client; None: it outlives the client, or the client itself closes it."""

    shipped: tuple[str, ...] = ()
    """Names of the environment variables that the workers were given."""

    def close(self, *args: Any, **kwargs: Any) -> Any:
        """Close the client, then its cluster; a second call does nothing."""
        closes, self.closes = self.closes, None
        try:
            return super().close(*args, **kwargs)
        finally:
            if closes is not None:
                closes()


def client_of(cluster: Any, timeout: float) -> ClusterClient:
    """Return the client that owns a cluster that has just been started; if it fails, the cluster is closed."""
    try:
        client = ClusterClient(cluster, timeout=timeout)
    except BaseException:
        cluster.close()
        raise
    client.closes = cluster.close
    return client


class ShippedEnvironment(WorkerPlugin):  # type: ignore[misc] # distributed has no types
    """Sets environment variables in every worker, also in those that come later.

    It travels over Dask's own connections, so that no command line, pod, job script or graph has secrets in it.
    """

    name = "s2composite-environment"

    def __init__(self, values: Mapping[str, str]) -> None:
        self._values = dict(values)

    def __repr__(self) -> str:
        return f"ShippedEnvironment({', '.join(self._values)})"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the variables."""
        return tuple(self._values)

    def setup(self, worker: Any) -> None:  # noqa: ARG002 - Dask passes it
        """Set the variables; Dask calls this in each worker."""
        os.environ.update(self._values)

    def differing(self) -> tuple[str, ...]:
        """Return the names of the variables that do not have their value in this process."""
        return tuple(name for name, value in self._values.items() if os.environ.get(name) != value)


def one_thread(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the thread counts with which a worker starts: those asked for, those set here, or 1."""
    return {name: environment.get(name, os.environ.get(name, "1")) for name in ONE_THREAD}


def values_to_ship(options: KindOptions) -> dict[str, str]:
    """Return the environment of the workers, with the values of credentials from this process's environment.

    Raises
    ------
    JobError
        A credential is not set here.
    """
    for name in options.credentials:
        if name not in os.environ:
            raise JobError(
                f"credentials: the environment variable {name} is not set here, so workers cannot get it; "
                "export it, or leave it out",
                key="credentials",
                variable=name,
            )
    return {**options.environment, **{name: os.environ[name] for name in options.credentials}}


def ship(client: Client, values: Mapping[str, str]) -> None:
    """Set environment variables in all workers, now and later.

    Raises
    ------
    ClusterError
        A worker cannot take them: s2composite is not installed there.
    """
    if not values:
        return
    try:
        client.register_plugin(ShippedEnvironment(values))
    except Exception as error:  # whatever importing the plugin raises in a worker arrives here
        with suppress(Exception):  # or workers that come later could not start; those that lack it raise again
            client.unregister_worker_plugin(ShippedEnvironment.name)
        raise ClusterError(
            f"a worker did not accept its environment ({type(error).__name__}: {error}); install the same s2composite "
            "in its Python as here"
        ) from error
    client.shipped = tuple(values)


def show_meters(client: Client) -> None:
    """Show on the dashboard what each worker has read; without s2composite on the workers, only warn."""
    try:
        client.register_plugin(WorkerMeters())
    except Exception as error:  # noqa: BLE001 - whatever importing the plugin raises in a worker arrives here
        with suppress(Exception):  # else workers that come later could not start
            client.unregister_worker_plugin(WorkerMeters.name)
        LOG.warning("the dashboard does not show what workers read: %s: %s", type(error).__name__, error)


def await_workers(client: Client, workers: int, timeout: float) -> None:
    """Wait for a number of workers.

    Raises
    ------
    ClusterError
        They have not started in time.
    """
    try:
        client.wait_for_workers(workers, timeout=timeout)
    except TimeoutError as error:
        there = len(client.scheduler_info(n_workers=-1)["workers"])
        raise ClusterError(
            f"after {timeout:g} s only {there} of {workers} workers have started; see their logs, or raise 'timeout' "
            "if machines take longer",
            workers=there,
        ) from error


@contextmanager
def started(kind: str, cure: str, also: list[str] | None = None) -> Iterator[None]:
    """Turn whatever fails while a cluster starts into one ClusterError.

    Parameters
    ----------
    kind
        What is started, ``"ssh cluster"``.
    cure
        What to do about it.
    also
        Lines to quote after the error, read when it happens.
    """
    try:
        yield
    except S2CompositeError:
        raise
    except Exception as error:  # what starts clusters raises errors of its own kinds
        lines = [f"{type(error).__name__}: {error}".removesuffix(": "), *(also or [])]
        raise ClusterError(f"the {kind} did not start ({'; '.join(lines)}); {cure}") from error
