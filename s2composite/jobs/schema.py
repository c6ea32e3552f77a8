"""The model of a job: the input, processing and output of a composite, and the cluster it runs on."""

from __future__ import annotations

import datetime as dt
import difflib
import os
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from s2composite.clusters.backends import LocalOptions
from s2composite.clusters.connect import ClusterOptions
from s2composite.clusters.submit import Policy
from s2composite.config import (
    VARIABLES,
    WHOLE,
    Count,
    Expected,
    FilePath,
    Finite,
    KeyValueError,
    Positive,
    Strict,
    Text,
    read_document,
    validated,
    variables_in,
    with_setting,
    without_variables,
)
from s2composite.errors import JobError, ParameterError, S2CompositeError
from s2composite.jobs.grid import GridOptions
from s2composite.jobs.schedule import SpanOptions, has_template, number_as_text, with_span_keys
from s2composite.pixels.mask_bands import resolve_rule
from s2composite.pixels.masks import Rule
from s2composite.pixels.reducers import Reducer, resolve_reducer
from s2composite.reading.warp import resampling_names
from s2composite.scenes.dates import date_range, find_periods
from s2composite.storage.limits import resolve_limits
from s2composite.writing.options import RasterOptions

__all__ = ["CELL", "Job", "job_schema", "job_template", "load_job", "require_selectors"]

CELL = "{cell}"  # replaced by the cell's name in an output's name


def _accepted(check: Callable[[Any], object], *, converted: bool = False) -> AfterValidator:
    """Return a validator that calls a function of the library; if `converted`, its result replaces the value."""

    def accepted(value: Any) -> Any:
        try:
            result = check(value)
        except (S2CompositeError, TypeError, ValueError) as error:  # the last two: a parameter of a wrong type
            raise ValueError(str(error)) from error
        return result if converted else value

    return AfterValidator(accepted)


def _output(path: str) -> str:
    if Path(path).suffix.lower() not in (".tif", ".zarr"):
        raise ValueError(f"expected a path that ends in .tif or .zarr, got {path!r}")
    return path


def _scenes(source: str | tuple[str, ...]) -> str | tuple[str, ...]:
    if not source:
        raise ValueError("is an empty list; name at least one path or URL")
    return source


def _named(what: str) -> Callable[[Any], Any]:
    """Return a function that converts ``name`` and ``{name: {parameter: value}}`` to one form."""

    def named(value: Any) -> Any:
        if isinstance(value, Mapping):
            if len(value) != 1:
                raise ValueError(f"expected one {what}, got {len(value)} ({', '.join(map(str, value))})")
            name, parameters = next(iter(value.items()))
            return {name: {} if parameters is None else parameters}
        return value

    return named


def _resolved(resolve: Callable[..., Any], named: str | dict[str, dict[str, Any]]) -> Any:
    """Return the reducer or rule with a name and parameters."""
    name, parameters = (named, {}) if isinstance(named, str) else next(iter(named.items()))
    return resolve(name, **parameters)


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is not a regular expression: {error}") from error
    return text


def _raster_options(options: dict[str, Any]) -> dict[str, Any]:
    known = [field.name for field in fields(RasterOptions)]
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, 1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"unknown option {key!r}; {hint}")
    return options


def _bounds(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    west, south, east, north = box
    if not (west < east and south < north):
        raise ValueError(f"expected [west, south, east, north] with west < east and south < north, got {list(box)}")
    return box


def _import_path(path: str) -> str:
    if not re.fullmatch(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*[.:][^\W\d]\w*", path):
        raise ValueError(f"expected the path of a function, such as planetary_computer.sign, got {path!r}")
    return path


def _limits(given: Any) -> Any:
    try:
        resolve_limits(given)
    except ParameterError as error:
        raise ValueError(str(error).removeprefix("limits: ")) from error
    return given


Date = Annotated[Text, BeforeValidator(number_as_text), _accepted(date_range)]
Pair = Annotated[tuple[Count, Count], Field(strict=False)]
Names = Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]
BandNames = Annotated[
    tuple[Text | Count, ...],
    BeforeValidator(lambda value: [value] if isinstance(value, (str, int)) and not isinstance(value, bool) else value),
    Field(strict=False, min_length=1),
]
ImportPath = Annotated[Text, AfterValidator(_import_path)]
Box = Annotated[tuple[Finite, Finite, Finite, Finite], Field(strict=False), AfterValidator(_bounds)]
NamedReducer = Annotated[
    Text | dict[str, dict[str, Any]], BeforeValidator(_named("reducer")), _accepted(partial(_resolved, resolve_reducer))
]
NamedRule = Annotated[
    Text | dict[str, dict[str, Any]], BeforeValidator(_named("rule")), _accepted(partial(_resolved, resolve_rule))
]
Periods = Annotated[
    Any, _accepted(lambda value: value is None or find_periods(value, dt.date(2023, 1, 1), dt.date(2023, 12, 31)))
]


class PolicyOptions(Strict):
    """Retries and time limit of a window, and the minimum number of scenes.

    Examples
    --------
    >>> PolicyOptions(attempts=5).pause
    1.0
    """

    attempts: Annotated[Count, WHOLE] = 3
    """Attempts before a window counts as failed; errors that are not transient are not retried."""

    pause: Annotated[Positive, Expected("a number of seconds")] = 1.0
    """Seconds before the second attempt, doubled for each further one."""

    timeout: Annotated[Positive, Expected("a number of seconds")] = 1800.0
    """Seconds after which a window's worker counts as stuck, and the window is retried on another one."""

    min_scenes: Annotated[Count, WHOLE] = 1
    """Minimum scenes of a product: a job with fewer is an error, a cell of a grid with fewer is left out."""

    look_ahead: Annotated[Count, WHOLE] = 2
    """Windows submitted to the scheduler at a time, for each thread."""

    def as_policy(self) -> Policy:
        """Return the policy."""
        return Policy(self.attempts, self.pause, self.timeout, self.look_ahead)


class Job(Strict):
    """One composite: its scenes, reducer and output, and the cluster it runs on.

    Only `source` and `output` are required. Relative paths are relative to the current directory, not to the job file;
    ``~`` is the home directory.

    Examples
    --------
    >>> job = Job(source="scenes", output="median.tif", datetime="2023-06/2023-08")
    >>> print(job.to_yaml())
    source: scenes
    output: median.tif
    datetime: 2023-06/2023-08
    <BLANKLINE>
    """

    source: Annotated[
        FilePath | Annotated[tuple[FilePath, ...], Field(strict=False)],
        AfterValidator(_scenes),
        Expected("a path, directory, pattern or URL, or a list of those"),
    ]
    """Scenes: a path, a directory, a glob, a ``gs://`` / ``s3://`` / ``https://`` prefix, or a list of those."""

    output: Annotated[FilePath, AfterValidator(_output), Expected("a path that ends in .tif or .zarr")]
    """Path of the composite, ending in ``.tif`` or ``.zarr``."""

    reducer: Annotated[
        NamedReducer | Annotated[tuple[NamedReducer, ...], Field(strict=False, min_length=1)],
        Expected("the name of a reducer, or {name: {parameter: value}}, or a list of those"),
    ] = "luminance_median"
    """How observations are reduced: ``luminance_median``, with parameters ``{name: {parameter: value}}``, or a list of
    reducers that are computed in one pass."""

    valid: Annotated[
        Annotated[tuple[NamedRule, ...], Field(strict=False)] | None,
        Expected("a list of rules, such as [nodata, {scl: {classes: [thin cirrus]}}]"),
    ] = None
    """Rules that select the observations to use: ``nodata``, ``saturated``, ``scl``, ``fmask``, ``qa_bits``,
    ``cloud_probability``, ``usable``, ``value_range``, ``swath_edge``, with parameters ``{name: {parameter: value}}``;
    None: nodata and saturated; ``[]``: all."""

    min_count: Annotated[Count, WHOLE] = 1
    """A pixel with fewer valid observations becomes nodata."""

    max_count: Annotated[Annotated[Count, WHOLE] | None, Expected("a whole number such as 10")] = None
    """Use at most this many valid observations of each pixel, the first in the order of `prefer`; then stop reading."""

    prefer: Annotated[Text | None, Expected("latest, earliest, a date, or a coordinate such as cloud_cover")] = None
    """Which observations `max_count` uses first: ``latest``, ``earliest``, those nearest to a date, or those with the
    smallest value of a coordinate (``cloud_cover``); None: the order of a reducer that picks by time, else
    ``latest``."""

    period: Annotated[Periods, Expected("a period such as month, 10D, 2023-06, or a list")] = None
    """A composite for each ``month``, ``season``, ``10D``, ``2023-06-01/2023-08-31``, or a list of those; see
    `s2composite.scenes.dates.find_periods`. The period is appended to the output's name, or replaces ``{period}``."""

    keep_empty: Annotated[bool, Expected("true or false")] = True
    """Whether to write periods without a scene, filled with nodata."""

    day: Annotated[Literal["utc", "solar"], Expected("utc or solar")] = "utc"
    """How a scene's day is counted: in UTC, or in mean solar time at the centre of the cube."""

    span: Annotated[SpanOptions | None, Expected("a mapping such as {start: 2012-01, end: 2018-05, unit: month}")] = (
        None
    )
    """Make a product for each ``day``, ``week``, ``month``, ``quarter``, ``season`` or ``year`` from one date to
    another, inclusive: ``{start: 2012-01, end: 2018-05, unit: month}``. In `output`, and in `source` if it differs,
    write ``{{pointInTime}}`` for the date (``201201``), or ``{{pointInTime:%Y-%m}}``."""

    datetime: Annotated[Date | None, Expected("dates such as 2023-06 or 2023-06-01/2023-08-31")] = None
    """Scenes to use: ``2023``, ``2023-06``, ``2023-06-01/2023-08-31``, ``2023-06-01/..``; None: all."""

    pattern: Annotated[
        Annotated[Text, AfterValidator(_expression)] | None, Expected("a regular expression with named groups")
    ] = None
    """Regular expression with named groups that finds the date in unusual file names; see `find_scenes`."""

    times: Annotated[
        Annotated[tuple[Date, ...], Field(strict=False, min_length=1)] | None,
        Expected("a list of dates such as 2023-06-15T10:46:29Z, one for each file"),
    ] = None
    """Time of each file, in the order of the files, if names do not contain it."""

    groupby: Annotated[Literal["solar_day", "utc_day"] | None, Expected("solar_day or utc_day")] = None
    """Merge the products of a day into one scene, ``solar_day`` or ``utc_day``; None: every product is a scene."""

    duplicates: Annotated[Literal["newest", "keep"], Expected("newest or keep")] = "newest"
    """Whether reprocessed products replace older ones (``newest``), or all are used (``keep``)."""

    alternate: Annotated[Text | None, Expected("the name of an alternate, such as https")] = None
    """Which of a file's locations in the catalogue to read, such as ``https``; None: the main one."""

    sign: Annotated[ImportPath | None, Expected("the path of a function, such as planetary_computer.sign")] = None
    """Function that signs URLs just before they are read, by its import path: ``planetary_computer.sign``."""

    limits: Annotated[
        Any, AfterValidator(_limits), Expected("a preset such as cdse, a list of those, or numbers by host")
    ] = None
    """What hosts allow, kept by all workers together: a preset, ``cdse``, ``planetary-computer`` or ``earth-search``, a
    list of those, or numbers by preset or host, ``{data.example.com: {connections: 4, requests: 2000, bytes: 20MB}}``
    (requests a minute, or ``100/second``; bytes a second); None: what `connect` or ``S2COMPOSITE_LIMITS`` say."""

    headers: Annotated[Literal["auto", "read", "lazy"], Expected("auto, read or lazy")] = "auto"
    """When headers are read: ``read``, all at the start; ``lazy``, by the windows; ``auto``: lazy for many files."""

    index: FilePath | None = None
    """File that stores the headers for later runs; see `open_cube`."""

    harmonise: Annotated[
        bool | dict[Text, Finite], Expected("true, false, or a mapping from scene ids to numbers to add")
    ] = True
    """Whether to subtract the offset of processing baseline 04.00, or the number to add for scenes without metadata."""

    reflectance: Annotated[bool, Expected("true or false")] = False
    """Physical values, float32 with NaN for nodata, instead of the values in the files."""

    bands: Annotated[BandNames | None, Expected("a list of names or numbers, such as [red, green, blue] or [1, 2]")] = (
        None
    )
    """Bands or whole assets, in the order wanted, or numbers of the bands of the only file, counted from 1; None: the
    only asset, or the true-colour picture."""

    bbox: Annotated[Box | None, Expected("four numbers, [west, south, east, north]")] = None
    """Area to cut out, ``[west, south, east, north]``, in degrees unless `bbox_crs` says otherwise."""

    bbox_crs: Annotated[Text | int, Expected("a coordinate system such as EPSG:32631")] = "EPSG:4326"
    """Coordinate system of `bbox`."""

    area: FilePath | None = None
    """GeoJSON file of polygons: with `grid`, only cells that they touch are made."""

    grid: Annotated[
        GridOptions | None, Expected("mgrs, 'crs;resolution;shape', or a mapping such as {type: utm, size: 20000}")
    ] = None
    """Cut an area into cells, each a separate product: ``mgrs`` (granules of Sentinel-2), ``"EPSG:3035;10;10000"``
    (Open Data Cube's crs;resolution;shape), ``{type: utm, size: 20000, buffer: 100}``, or polygons of a file,
    ``{type: cells, file: cells.geojson, name: id}``. ``{cell}`` in the output's name is replaced by the cell's."""

    crs: Annotated[Text | int | None, Expected("a coordinate system such as EPSG:32631")] = None
    """Coordinate system of the output; None: the scenes' own."""

    resolution: Annotated[Positive | None, Expected("a pixel size, a number above 0")] = None
    """Pixel size of the output in units of its CRS; None: the scenes' own."""

    like: FilePath | None = None
    """Raster whose grid is used for the output, instead of `crs`, `resolution` and `anchor`."""

    anchor: Annotated[
        Literal["edge", "center", "floating"] | Annotated[tuple[Finite, Finite], Field(strict=False)] | None,
        Expected("edge, center, floating, or two fractions of a pixel"),
    ] = None
    """Alignment of a new grid's pixels; None: as in the scenes."""

    resampling: Annotated[
        Text | dict[Text, Text],
        _accepted(resampling_names, converted=True),
        Expected("the name of a resampling method, such as nearest, or {band: method, '*': method}"),
    ] = "nearest"
    """GDAL's name of the method for scenes that are not on the output's grid; or one for each band, ``*`` for all
    others."""

    chunks: Annotated[Literal["auto"] | Count | Pair, Expected("'auto', a number of pixels, or [y, x]")] = "auto"
    """Window size in pixels: a side, ``[y, x]``, or ``auto``: derived from the memory of a worker thread."""

    engine: Annotated[Literal["auto", "tiles", "gdal"], Expected("one of auto, tiles, gdal")] = "auto"
    """What reads the files: ``tiles`` (decoded directly), ``gdal``, or ``auto``: tiles where possible."""

    on_error: Annotated[Literal["raise", "skip"], Expected("raise or skip")] = "raise"
    """Effect of an unreadable scene: its windows fail (others continue), or it counts as not observed there."""

    layers: Annotated[Names | None, Expected("a list of layers, such as [composite, count, source]")] = None
    """Layers to write to ``.tif`` files; None: as in `Composite.to_raster`. A Zarr store holds all layers."""

    raster: Annotated[
        Annotated[dict[str, Any], AfterValidator(_raster_options)] | None, Expected("options such as {compress: zstd}")
    ] = None
    """How ``.tif`` files are encoded: ``{compress: zstd, blocksize: 256}``, see `RasterOptions`; None: deflate."""

    overwrite: Annotated[bool, Expected("true or false")] = False
    """Whether to replace an existing output."""

    policy: PolicyOptions = PolicyOptions()
    """Handling of windows that fail or take too long: ``{attempts: 3, timeout: 1800}``."""

    cluster: ClusterOptions = LocalOptions()
    """The cluster: ``local``, a scheduler's address, a ``.yaml`` file, or ``{type: local, workers: 2}``."""

    performance_report: Annotated[FilePath | None, Expected("a path that ends in .html")] = None
    """Where to write Dask's performance report (HTML); None: none."""

    @field_validator("layers")
    @classmethod
    def _layers_are_for_rasters(cls, layers: Any, info: ValidationInfo) -> Any:
        if layers is not None and Path(info.data.get("output", "")).suffix.lower() == ".zarr":
            raise ValueError("a Zarr store holds all layers; leave the key out, or write to a .tif")
        return layers

    @model_validator(mode="after")
    def _cells_need_names(self) -> Job:
        if self.grid is None and (self.area is not None or CELL in self.output):
            key = "output" if self.area is None else "area"
            raise KeyValueError(key, "area and {cell} in the output need a grid; give a grid")
        if self.grid is not None and CELL not in self.output:
            raise KeyValueError("grid", "a grid makes a product for each cell: put {cell} into the output's name")
        if self.grid is not None and any(v is not None for v in (self.crs, self.resolution, self.anchor, self.like)):
            message = "a grid sets crs, resolution and anchor itself; leave out crs, resolution, anchor and like"
            raise KeyValueError("grid", message)
        return self

    @model_validator(mode="after")
    def _templates_need_dates(self) -> Job:
        sources = (self.source,) if isinstance(self.source, str) else self.source
        templates = [
            key for key, text in [*(("source", s) for s in sources), ("output", self.output)] if has_template(text)
        ]
        if self.span is None and templates:
            message = f"{templates[0]} has {{{{pointInTime}}}}, and the job has no date for it; give a span"
            raise KeyValueError(templates[0], message)
        if self.span is not None and "output" not in templates:
            message = "a span makes a product for each date: put {{pointInTime}} into the output's name"
            raise KeyValueError("span", message)
        if self.span is not None and self.datetime is not None:
            raise KeyValueError("span", "a span sets the dates; leave datetime out")
        return self

    @property
    def format(self) -> str:
        """``"tif"`` or ``"zarr"``, from the output's name."""
        return Path(self.output).suffix.lower().removeprefix(".")

    @property
    def reducers(self) -> tuple[Reducer, ...]:
        """The reducers."""
        several = self.reducer if isinstance(self.reducer, tuple) else (self.reducer,)
        return tuple(_resolved(resolve_reducer, named) for named in several)

    @property
    def rules(self) -> tuple[Rule, ...] | None:
        """The rules of validity; None: the default rules."""
        return None if self.valid is None else tuple(_resolved(resolve_rule, named) for named in self.valid)

    def to_yaml(self) -> str:
        """Return the job as the text of a job file, without keys that have their default value."""
        values = self.model_dump(exclude_defaults=True)
        if "cluster" in values:
            values["cluster"] = {"type": self.cluster.type, **values["cluster"]}
        return without_variables(yaml.safe_dump(values, sort_keys=False))


def job_schema() -> dict[str, Any]:
    """Return the JSON Schema of job files: `Job`, and the variables that a file may set."""
    schema = Job.model_json_schema()
    meaning = "Values for ``${NAME}`` in this file; those of the environment are there anyway."
    variables = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}}
    return {**schema, "properties": {VARIABLES: {**variables, "description": meaning}, **schema["properties"]}}


def load_job(job: str | os.PathLike[str] | Mapping[str, Any] | Job, settings: Sequence[str] = ()) -> Job:
    r"""Return a job from a file, YAML text or a mapping, with settings as given on the command line.

    Parameters
    ----------
    job
        Path of a YAML file; YAML text (recognised by a newline or ``": "``); a mapping; or a Job. In files and text
        ``${NAME}`` is a variable from the key ``variables`` of the file, or else from the environment;
        ``${NAME:-default}`` has a default, and ``$${NAME}`` is the literal text ``${NAME}``.
    settings
        ``"key=value"`` each, which override the file; keys may be dotted, values are YAML: ``"cluster.workers=4"``,
        ``"variables.year=2024"``.

    Returns
    -------
    Job
        The checked job.

    Raises
    ------
    JobError
        A key is missing, unknown or invalid; the message names the file, line, key and the expected value.

    Examples
    --------
    >>> load_job("source: scenes\noutput: median.tif", ["chunks=[512, 1024]"]).chunks
    (512, 1024)
    >>> load_job("source: scenes\noutput: median.tif\nreducr: mean")
    Traceback (most recent call last):
        ...
    s2composite.errors.JobError: job, line 3: unknown key 'reducr'; did you mean 'reducer'?
    """
    if isinstance(job, Job) and not settings:
        return job
    given, others = variables_in(settings)
    document = read_document(job.model_dump() if isinstance(job, Job) else job, given=given)
    for setting in others:
        document = with_setting(document, setting)
    return validated(Job, with_span_keys(document))


def require_selectors(
    job: Job, *, since: str | None = None, windows: Any = None, cells: str | None = None, prefix: str = ""
) -> None:
    """Raise if a selection does not apply to the job's products or windows; `prefix` is for names in messages."""
    choose = f"{prefix}%s and {prefix}area select from its %s"
    if job.span is None and since is not None:
        raise JobError(f"{prefix}since selects from a span, and the job has none; leave it out", key="span")
    if job.grid is None and cells is not None:
        raise JobError(f"{prefix}cells: the job has no grid; {choose % ('windows', 'windows')}", key="grid")
    if job.grid is not None and windows is not None:
        raise JobError(f"{prefix}windows: the job has a grid; {choose % ('cells', 'cells')}", key="grid")


_EXAMPLES = {"source": "scenes/", "output": "median.tif"}
_HEAD = """# A job of s2composite: s2composite run THIS_FILE
# Keys that begin with # have these values unless you say otherwise.
# ${NAME} is a variable of the environment, or of this file: variables: {NAME: value}."""


def job_template() -> str:
    """Return a job file with every key: required ones to be filled in, the others commented out with their defaults.

    Examples
    --------
    >>> job_template().splitlines()[-1]
    '# performance_report: null'
    """
    lines = [_HEAD]
    for name, field in Job.model_fields.items():
        meaning = " ".join((field.description or "").replace("``", "").replace("None:", "null:").split())
        lines += ["", *(f"# {line}" for line in textwrap.wrap(meaning, 100))]
        if field.is_required():
            lines.append(f"{name}: {_EXAMPLES[name]}")
            continue
        default = field.default
        plain = default.model_dump(exclude_none=True) if isinstance(default, BaseModel) else default
        value = yaml.safe_dump(plain, default_flow_style=True, width=1000).strip().removesuffix("...").strip()
        lines.append(f"# {name}: {value}")
    return "\n".join(lines) + "\n"
