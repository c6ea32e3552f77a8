"""Options that kinds of clusters share: the environment of their workers, and a number of them, fixed or not."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from s2composite.running.jobs.document import Expected, Strict
from s2composite.running.jobs.fields import WHOLE, Count, Credentials, Environment, Positive

__all__ = ["ElasticOptions", "HostedOptions", "KindOptions"]


class KindOptions(Strict):
    """Options that all kinds of clusters have."""

    type: str
    """Names the kind of cluster."""

    environment: Environment = {}  # noqa: RUF012 - pydantic copies it
    """Environment variables of every worker, such as GDAL's settings or thread counts."""

    credentials: Credentials = ()
    """Names of environment variables that workers get with their values here, such as ``AWS_SECRET_ACCESS_KEY``."""

    timeout: Annotated[Positive, Expected("a number of seconds")] = 60
    """Seconds to wait for the scheduler, and for the workers that are there from the beginning."""

    @property
    def awaited(self) -> int:
        """Workers that `connect` waits for."""
        return 0

    @property
    def joined(self) -> str | None:
        """The running cluster that is joined; None: a new one is started."""
        return None


class ElasticOptions(KindOptions):
    """A cluster with a number of workers, either fixed or following the work between two bounds."""

    workers: Annotated[Count | None, WHOLE] = None
    """Number of workers."""

    minimum: Annotated[int | None, Field(ge=0), Expected("a whole number from 0")] = None
    """Fewest workers, when there is nothing to do; with `maximum`, instead of `workers`."""

    maximum: Annotated[Count | None, WHOLE] = None
    """Most workers, when there is much to do; with `minimum` (default 0), instead of `workers`."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.maximum is None and self.minimum is not None:
            raise ValueError(f"minimum is {self.minimum}, but there is no maximum; give both")
        if self.maximum is not None and self.workers is not None:
            raise ValueError("give either workers, or minimum and maximum")
        if self.maximum is not None and (self.minimum or 0) > self.maximum:
            raise ValueError(f"minimum ({self.minimum}) is above maximum ({self.maximum})")
        return self

    @property
    def bounds(self) -> tuple[int, int] | None:
        """Fewest and most workers of a cluster that follows the work; None: a fixed number."""
        return None if self.maximum is None else (self.minimum or 0, self.maximum)

    @property
    def first(self) -> int:
        """Workers to begin with."""
        return (self.minimum or 0) if self.maximum is not None else self.workers or 0


class HostedOptions(ElasticOptions):
    """A cluster on machines that cost money or are shared, so that its size must be given."""

    timeout: Annotated[Positive, Expected("a number of seconds")] = 600
    """Seconds to wait for the scheduler, and for the first worker."""

    @model_validator(mode="after")
    def _sized(self) -> Self:
        if self.workers is None and self.maximum is None and self.joined is None:
            raise ValueError("needs a number of workers: 'workers', or 'minimum' and 'maximum'")
        return self

    @property
    def awaited(self) -> int:
        """One worker is enough to begin with; none if the cluster may be empty without work."""
        return min(1, self.first)
