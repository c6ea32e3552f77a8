"""Documents: a job as a stranger sends it, and what it becomes here. What is not listed is not accepted."""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from s2composite.errors import JobError, S2CompositeError
from s2composite.pixels.reducers import reducer_names
from s2composite.pixels.rules import rule_names
from s2composite.running.jobs.document import Document, parse_text, validated
from s2composite.running.jobs.job import Job
from s2composite.running.run_spans import span_jobs
from s2composite.running.spans import with_span_keys
from s2composite.scenes.access import Access
from s2composite.scenes.storage import absolute, join
from s2composite.service.counting import check_count
from s2composite.service.envelope import check_text, parsed_json
from s2composite.service.problems import Problem, ProblemError, problem_of
from s2composite.service.settings import Settings

__all__ = ["KEYS", "job_access", "job_here", "job_text", "make_place", "sent_document"]

KEYS = (
    "source", "output", "reducer", "valid", "min_count", "period", "keep_empty", "day", "datetime", "pattern", "times",
    "groupby", "duplicates", "alternate", "headers", "harmonise", "reflectance", "bands", "bbox", "bbox_crs", "grid",
    "span", "crs", "resolution", "anchor", "resampling", "chunks", "on_error", "layers", "raster", "policy",
)  # fmt: skip
"""Keys of a job that a stranger may set. The others are the operator's, or name files here."""

_CRS = re.compile(r"[A-Za-z]{2,10}:\d{1,7}")
"""Names of coordinate systems: PROJ's longer forms name files."""

_NAME = re.compile(
    r"(?!\.)(?:[\w.-]|\{(?:cell|period)\}|\{\{pointInTime\}\}){1,100}\.(?:tif|zarr)",
    re.ASCII,
)

_DEEPEST = 20

_LONGEST_YAML = 1 << 16
"""Bytes of a job in YAML: PyYAML takes 2 s for them, and a minute for the 2 MB that a body may have."""

_LARGEST = 10**15


def sent_document(body: bytes, media: str) -> Document:
    """Return the document in a body of JSON or YAML. Variables of the environment are not filled in: they are ours.

    Raises
    ------
    ProblemError
        It is neither, refers to itself, or is no mapping.
    """
    if media == "application/json":
        content = parsed_json(body)
        if not isinstance(content, Mapping):
            raise ProblemError(Problem(400, "a job is an object with keys such as source and output", ""))
        document = Document("job", dict(content), {})
    else:
        document = _from_yaml(body)
    if _depth(document.values) > _DEEPEST:
        raise ProblemError(Problem(400, "the job is nested too deeply", ""))
    check_text(document.values)
    return document


def _from_yaml(body: bytes) -> Document:
    if len(body) > _LONGEST_YAML:
        told = f"a job in YAML has at most {_LONGEST_YAML} bytes; send longer ones as JSON"
        raise ProblemError(Problem(413, told, ""))
    try:
        text = body.decode()
        _check_tokens(text)
        return parse_text(text.replace("${", "$${"), "job")
    except UnicodeDecodeError as error:
        raise ProblemError(Problem(400, f"the job is not UTF-8 (byte {error.start})", "")) from None
    except yaml.YAMLError as error:
        raise ProblemError(Problem(400, f"the job is not YAML: {' '.join(str(error).split())}", "")) from None
    except JobError as error:
        raise ProblemError(Problem(400, str(error), _pointer(error))) from None
    except ValueError as error:  # PyYAML's own conversions: dates that are none, for one
        raise ProblemError(Problem(400, f"the job is not YAML: {error}", "")) from None


_OPENING = (
    yaml.BlockSequenceStartToken,
    yaml.BlockMappingStartToken,
    yaml.FlowSequenceStartToken,
    yaml.FlowMappingStartToken,
)
_CLOSING = (yaml.BlockEndToken, yaml.FlowSequenceEndToken, yaml.FlowMappingEndToken)


def _check_tokens(text: str) -> None:
    """Refuse what costs far more than its length, before it is parsed.

    A few aliases can stand for gigabytes, and the time that PyYAML takes grows with the square of the depth: 80 s for
    20 000 brackets.
    """
    depth = 0
    for token in yaml.scan(text):
        if isinstance(token, yaml.AliasToken):
            raise ProblemError(Problem(400, "the job has a YAML alias (*name); write the values out", ""))
        depth += isinstance(token, _OPENING) - isinstance(token, _CLOSING)
        if depth > _DEEPEST:
            raise ProblemError(Problem(400, "the job is nested too deeply", ""))


def _depth(value: Any, depth: int = 0) -> int:
    """Return how deep a value is nested; numbers that no key takes are refused."""
    if isinstance(value, int) and abs(value) > _LARGEST:
        raise ProblemError(Problem(422, "the job has a number of more than 15 digits", ""))
    if depth > _DEEPEST:
        return depth
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return max((_depth(one, depth + 1) for one in inner), default=depth)


def job_here(document: Document, number: str, settings: Settings) -> Job:
    """Return the job that a document asks for, as it is run here: its results below its own directory.

    Raises
    ------
    ProblemError
        Names the key that is wrong or not allowed.
    """
    document = _with_span(document)
    values = document.values
    _check_keys(values)
    _check_names(values)
    _check_crs(values)
    name = _output_name(values)
    assert settings.storage is not None
    here = {"output": join(settings.storage, number, name), "overwrite": False}
    try:
        job = validated(Job, Document(document.name, values | here, document.places))
    except JobError as error:
        raise ProblemError(Problem(422, str(error), _pointer(error))) from None
    check_count(job, settings.limits.products)
    return _with_end(job, settings).model_copy(update={"cluster": settings.cluster})


def _with_span(document: Document) -> Document:
    try:
        return with_span_keys(document)
    except JobError as error:
        raise ProblemError(Problem(422, str(error), "/span")) from None


def _with_end(job: Job, settings: Settings) -> Job:
    """Check where a job reads, each unit of a span by itself; return it with a span that ends when it was sent.

    Its products are the same whenever it is looked at, or tried again.
    """
    if job.span is None:
        _check_sources(job, settings)
        return job
    try:
        units = span_jobs(job)
    except S2CompositeError as error:
        raise ProblemError(problem_of(error, "/span")) from None
    for unit in units:
        _check_sources(unit.job, settings)
    last = units[-1].period.end - dt.timedelta(days=1)
    step, end = job.span.step, job.span.end or str(last)
    return job.model_copy(update={"span": job.span.model_copy(update={"unit": step, "end": end})})


def _check_keys(values: Mapping[str, Any]) -> None:
    for key in values:
        if key in KEYS:
            continue
        if key in Job.model_fields:
            raise ProblemError(Problem(403, f"{key}: is the operator's to set, not a caller's", f"/{key}"))
        raise ProblemError(Problem(422, f"unknown key {str(key)[:100]!r}; there are {', '.join(KEYS)}", ""))


def _check_names(values: Mapping[str, Any]) -> None:
    """Accept reducers and rules by their names alone: a path would be imported."""
    for key, known in (("reducer", reducer_names()), ("valid", rule_names())):
        for name in _names(values.get(key)):
            if name not in known:
                told = f"{key}: {str(name)[:100]!r} is unknown; there are {', '.join(known)}"
                raise ProblemError(Problem(422, told, f"/{key}"))


def _names(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [name for one in value for name in _names(one)]
    return list(value) if isinstance(value, Mapping) else [] if value is None else [value]


def _check_crs(values: Mapping[str, Any]) -> None:
    grid = values.get("grid")
    written = grid.partition(";")[0].strip() if isinstance(grid, str) and ";" in grid else None
    named = {"crs": values.get("crs"), "bbox_crs": values.get("bbox_crs")}
    named["grid"] = grid.get("crs") if isinstance(grid, Mapping) else written
    for key, value in named.items():
        if isinstance(value, str) and not _CRS.fullmatch(value):
            raise ProblemError(Problem(422, f"{key}: expected a code such as EPSG:32631", f"/{key}"))


def _output_name(values: Mapping[str, Any]) -> str:
    name = values.get("output", "composite.tif")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        told = (
            "output: a plain name that ends in .tif or .zarr, in which {cell}, {period} or {{pointInTime}} may stand; "
            "the service puts it below the job's own directory"
        )
        raise ProblemError(Problem(422, told, "/output"))
    return name


def _check_sources(job: Job, settings: Settings) -> None:
    listed = (job.source,) if isinstance(job.source, str) else job.source
    if len(listed) > settings.limits.datasets:
        told = f"{len(listed)} sources; at most {settings.limits.datasets} are taken"
        raise ProblemError(Problem(422, told, "/source"))
    for number, source in enumerate(listed):
        pointer = "/source" if isinstance(job.source, str) else f"/source/{number}"
        try:
            settings.access.may_read(_before_glob(absolute(source)))
        except S2CompositeError as error:
            raise ProblemError(problem_of(error, pointer)) from error


def _before_glob(href: str) -> str:
    """Return what comes before the first part with a wildcard; what that matches is looked at when it is opened."""
    return re.split(r"/[^/]*[*?\[]", href, maxsplit=1)[0] if "://" not in href or "*" in href else href


def _pointer(error: JobError) -> str:
    key = error.__dict__.get("key")
    return "".join(f"/{part}" for part in str(key).split(".")) if key else ""


def job_access(settings: Settings, number: str) -> Access:
    """Return what the process of a job may read and write: its own results, and nothing of others."""
    assert settings.storage is not None
    own = join(settings.storage, number)
    return Access((*settings.read, own), (own,), settings.networks)


def job_text(job: Job) -> str:
    """Return a job as the text that is kept of it."""
    return json.dumps(job.model_dump(mode="json"))


def make_place(storage: str, number: str) -> None:
    """Make the directory of a job's results, where storage is a disk."""
    if "://" not in storage:
        Path(storage, number).mkdir(parents=True, exist_ok=True)
