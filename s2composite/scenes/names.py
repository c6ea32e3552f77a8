"""Names of Sentinel-2 products and files: the scene, asset, granule, time, orbit and baseline that they give."""

from __future__ import annotations

import datetime as dt
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from urllib.parse import unquote

from s2composite.errors import ParameterError, SceneError
from s2composite.storage.files import display

__all__ = ["PICTURES", "UNNAMED_ASSET", "ParsedName", "asset_bands", "parse_name"]

UNNAMED_ASSET = "data"  # asset of a file whose name does not say what it holds

PICTURES = ("TCI", "visual")  # names of the true-colour picture: 8 bits, made for the eye

_CODES = r"TCI|PVI|B(?:0?[1-9]|1[0-2]|8A)|SCL|CLDPRB|SNWPRB|CLD|SNW|BOA|TOA|AOT|WVP"
_WORDS = r"visual|coastal|blue|green|red|rededge[1-3]?|nir(?:0[89])?|cirrus|swir(?:16|22)"  # Earth Search's keys
_ASSET = re.compile(rf"(?:^|[_.-])({_CODES}|{_WORDS})(?:[_-](10|20|60)m)?$", re.IGNORECASE)
_SINGLE = re.compile(rf"(?!BOA|TOA|PVI)(?:{_CODES}|{_WORDS})")

_EXTENSION = re.compile(r"(?:\.cog)?\.(?:tiff?|jp2|safe|zarr|zip|vrt|json)$", re.IGNORECASE)
_GRANULE = r"(?:0[1-9]|[1-5]\d|60)[C-HJ-NP-X][A-HJ-NP-Z][A-HJ-NP-V]"
_LONE_GRANULE = re.compile(rf"(?<![A-Za-z0-9])T?({_GRANULE})(?![A-Za-z0-9])")
_PLATFORM = re.compile(r"(?<![A-Za-z0-9])(?:S|SENTINEL)(2[A-D])(?=_)")

# Sensing start, then baseline (Planetary Computer leaves it out), orbit, granule, and the time the product was made.
_PRODUCT = re.compile(
    rf"(S2[A-D])_MSIL\d[A-Z]_(\d{{8}}T\d{{6}})(?:_N(\d{{4}}))?_R(\d{{3}})_T({_GRANULE})_\d{{8}}T\d{{6}}"
)
# Products until 2016: made at the first time, sensed from V to the last.
_OLD_PRODUCT = re.compile(
    r"(S2[A-D])_(?:OPER|USER)_[A-Z0-9_-]{12,}_\d{8}T\d{6}_R(\d{3})_V(\d{8}T\d{6})_\d{8}T\d{6}(?:_T([A-Z0-9]{5}))?"
)
_OLD_GRANULE = re.compile(r"S2[A-D]_(?:OPER|USER)_")

_DIGITAL_DATE = re.compile(
    r"(?<!\d)((?:19|20)\d\d)(\d\d)(\d\d)(?:(?:T?(\d\d)(\d\d)(\d\d)(?!\d))|(?:-(\d\d)(\d\d)(\d\d)-\d{3}(?!\d))|(?!\d))"
)
_DASHED_DATE = re.compile(
    r"(?<!\d)((?:19|20)\d\d)-(\d\d)-(\d\d)(?!\d)"
    r"(?:[T_ ](\d\d)[-:](\d\d)(?:[-:](\d\d))?(?!\d)|T(\d\d)(\d\d)(\d\d)(?!\d))?"
)
_CURES = (
    "rename the file so that it holds one date like 20230709 or 20230709T104629, say where the date stands with "
    "pattern= (a regular expression with the groups year, month and day, or date), or give the times with times="
)


@dataclass(frozen=True, slots=True)
class ParsedName:
    """What the name of a file or product says."""

    scene_id: str  # the name without the asset's suffix: equal for all files of one acquisition
    asset: str  # "TCI", "B04" ...; "data" if the name does not say
    granule: str | None  # MGRS tile, "31TCJ"
    time: dt.datetime  # start of sensing in UTC; midnight if the name gives only a day
    orbit: int | None  # relative orbit, 1 to 143
    baseline: str | None  # processing baseline, "05.09"
    platform: str | None  # "S2A", "S2B" ...
    resolution: int | None = None  # pixel size in metres that the asset's suffix gives (_10m)


def parse_name(name: str, pattern: str | None = None, *, time: dt.datetime | None = None) -> ParsedName:
    """Return what a file name, path, URL or product name says about its scene.

    Parameters
    ----------
    name
        Only its last part counts, with two exceptions: a file named after its asset alone (``TCI.tif``) belongs to the
        scene that its folder names, and a full product name among its folders adds platform, orbit and baseline.
    pattern
        Regular expression for names in no known form, searched for in the file name, or in the whole path if it
        contains ``/``. Named groups: ``year``, ``month``, ``day`` (and ``hour``, ``minute``, ``second``) or ``date``
        (and ``time``); optional ``id``, ``asset``, ``granule``, ``orbit``, ``baseline``, ``platform``.
    time
        Acquisition time, if it is known and need not be in the name.

    Raises
    ------
    SceneError
        The name gives no date, an impossible one, or several.
    ParameterError
        The pattern is not a regular expression, or has no groups that give a date.

    Examples
    --------
    >>> parsed = parse_name("S2A_MSIL2A_20230709T104621_N0509_R051_T31TCJ_20230709T170403.SAFE")
    >>> parsed.granule, parsed.orbit, parsed.baseline, f"{parsed.time:%Y-%m-%d %H:%M:%S}"
    ('31TCJ', 51, '05.09', '2023-07-09 10:46:21')
    >>> parse_name("31/T/CJ/2023/7/S2B_31TCJ_20230709_0_L2A/B04.tif").scene_id
    'S2B_31TCJ_20230709_0_L2A'
    """
    label = display(name)
    scheme, is_url, rest = label.partition("://")
    if is_url:  # without the host
        path = (unquote(rest.partition("/")[2]) if scheme.lower() in ("http", "https") else rest).rstrip("/")
    else:
        path = label.replace("\\", "/").rstrip("/")
    folders, _, last = path.rpartition("/")
    stem, asset, resolution = _split_asset(_EXTENSION.sub("", last))
    if pattern is not None:
        return replace(_match_pattern(label, path, pattern, time), resolution=resolution)
    scene_id = stem or _EXTENSION.sub("", folders.rpartition("/")[2]) or last
    parsed = _parse_product(scene_id, label)
    if parsed is None:
        if time is None and _OLD_GRANULE.match(scene_id):
            raise SceneError(
                f"{label}: in names of this old form the date is when the file was made, not when it was sensed; "
                f"{_CURES}",
                href=label,
            )
        granule, platform = _only(_LONE_GRANULE, scene_id), _only(_PLATFORM, scene_id)
        sensed = time or _only_time(scene_id, label)
        parsed = ParsedName(scene_id, asset, granule, sensed, None, None, platform and f"S{platform}")
    # The folder of a product says more about a file in it (``S2A_MSIL2A_....SAFE/GRANULE/...``).
    match = _PRODUCT.search(folders) if parsed.orbit is None else None
    product = _parse_product(match[0], folders) if match else None
    time = time or parsed.time
    if product is not None and product.granule == parsed.granule and product.time.date() == time.date():
        parsed = replace(parsed, orbit=product.orbit, baseline=product.baseline, platform=product.platform)
    return replace(parsed, asset=asset, resolution=resolution, time=time)


def asset_bands(asset: str) -> tuple[str, ...]:
    """Return the names of the bands in a file of this asset; empty if only the file can tell.

    >>> asset_bands("TCI"), asset_bands("B8A"), asset_bands("data")
    (('red', 'green', 'blue'), ('B8A',), ())
    """
    if asset in PICTURES:
        return ("red", "green", "blue")
    return (asset,) if _SINGLE.fullmatch(asset) else ()


def _split_asset(stem: str) -> tuple[str, str, int | None]:
    """Split ``T31TCJ_20230709T104629_B04_10m`` into what is before the asset, the asset and its pixel size (m)."""
    match = _ASSET.search(stem)
    if match is None:
        return stem, UNNAMED_ASSET, None
    word = match[1].lower()
    asset = word if re.fullmatch(_WORDS, word) else match[1].upper()
    return stem[: match.start()], asset, int(match[2]) if match[2] else None


def _parse_product(scene_id: str, label: str) -> ParsedName | None:
    """Return what a full product name says, in the current or the old form; None for other names."""
    if match := _PRODUCT.search(scene_id):
        platform, sensed, baseline, orbit, granule = match.groups()
        baseline = baseline and _dotted_baseline(baseline)
    elif match := _OLD_PRODUCT.search(scene_id):
        platform, orbit, sensed, granule = match.groups()
        baseline = None
    else:
        return None
    return ParsedName(scene_id, UNNAMED_ASSET, granule, _only_time(sensed, label), int(orbit), baseline, platform)


def _only(form: re.Pattern[str], text: str) -> str | None:
    """Return what a form finds in a text; None if it finds nothing, or different things."""
    matches = set(form.findall(text))
    return matches.pop() if len(matches) == 1 else None


def _only_time(text: str, label: str) -> dt.datetime:
    """Return the date in a text: the earliest time, if it has several on one day.

    Sensing starts before it ends and before the file is made, so the earliest time of the day is the one meant.
    """
    candidates = [match.groups() for form in (_DIGITAL_DATE, _DASHED_DATE) for match in form.finditer(text)]
    times = []
    for fields in candidates:  # year, month, day and perhaps hour, minute, second as digits
        year, month, day, *clock = (int(field) for field in fields if field)
        hour, minute, second = (*clock, 0, 0, 0)[:3]
        with suppress(ValueError):  # there is no such day
            date = dt.datetime(year, month, day, tzinfo=dt.UTC)
            is_clock = hour < 24 and minute < 60 and second < 60
            times.append(date.replace(hour=hour, minute=minute, second=second) if is_clock else date)
    days = sorted({time.date() for time in times})
    if not candidates:
        raise SceneError(f"{label}: its name holds no date; {_CURES}", href=label)
    if not days:
        wrong = ", ".join("".join(fields[:3]) for fields in candidates)
        raise SceneError(f"{label}: {wrong} in its name is not a date; {_CURES}", href=label)
    if len(days) > 1:
        listed = " and ".join(map(str, days))
        raise SceneError(f"{label}: its name holds several dates ({listed}), so it is ambiguous; {_CURES}", href=label)
    return min((time for time in times if time.time() != dt.time.min), default=times[0])


def _match_pattern(label: str, path: str, pattern: str, time: dt.datetime | None) -> ParsedName:
    """Return what the user's pattern finds, with defaults for groups that it does not have."""
    try:
        form = re.compile(pattern)
    except re.error as error:
        raise ParameterError(f"pattern {pattern!r} is not a regular expression: {error}") from None
    if not (form.groupindex.keys() >= {"year", "month", "day"} or "date" in form.groupindex):
        raise ParameterError(
            f"pattern {pattern!r} has no groups that give a date; name them like "
            r"(?P<year>\d{4})(?P<month>\d{2})(?P<day>\d{2}), or (?P<date>\d{8})"
        )
    last = path.rpartition("/")[2]
    match = form.search(path if "/" in pattern else last)
    if match is None:
        raise SceneError(
            f"{label}: pattern {pattern!r} does not match its name; correct the pattern, or leave the file out",
            href=label,
        )
    groups = {name: text for name, text in match.groupdict().items() if text}
    sensed = time
    if sensed is None:
        date = groups.get("date") or "-".join(groups.get(key, "") for key in ("year", "month", "day"))
        clock = groups.get("time") or ":".join(groups.get(key, "00") for key in ("hour", "minute", "second"))
        # the digits alone, so that 2023-7-9 is 20230709
        day, moment = ("".join(part.zfill(2) for part in re.split(r"\D+", text) if part) for text in (date, clock))
        day_form = {7: "%Y%j", 8: "%Y%m%d"}.get(len(day), "not a date")
        try:
            sensed = dt.datetime.strptime(f"{day}T{moment[:6].ljust(6, '0')}+0000", f"{day_form}T%H%M%S%z")
        except ValueError:
            text = f"{date} {clock}".rstrip(":0 ")
            message = f"{label}: the pattern finds {text!r} in its name, which is not a date; {_CURES}"
            raise SceneError(message, href=label) from None
    granule = groups["granule"].upper().removeprefix("T") if "granule" in groups else _only(_LONE_GRANULE, last)
    rest, asset, _ = _split_asset(_EXTENSION.sub("", last))
    if "asset" in groups:  # all files of a scene share what is left of the name without it
        rest = re.sub(rf"(?<![A-Za-z0-9]){re.escape(groups['asset'])}(?![A-Za-z0-9])[_.-]?", "", rest).strip("_.-")
    orbit = groups.get("orbit", "0").upper().removeprefix("R")
    if not orbit.isdecimal():
        message = f"{label}: the pattern's group orbit finds {groups['orbit']!r}, which is not a number"
        raise SceneError(message, href=label)
    return ParsedName(
        scene_id=groups.get("id") or rest or f"{granule or 'scene'}_{sensed:%Y%m%dT%H%M%S}",
        asset=groups.get("asset", asset),
        granule=granule,
        time=sensed,
        orbit=int(orbit) if "orbit" in groups else None,
        baseline=_dotted_baseline(groups["baseline"]) if "baseline" in groups else None,
        platform=groups.get("platform"),
    )


def _dotted_baseline(text: str) -> str:
    digits = text.upper().removeprefix("N")
    return f"{digits[:2]}.{digits[2:]}" if re.fullmatch(r"\d{4}", digits) else digits
