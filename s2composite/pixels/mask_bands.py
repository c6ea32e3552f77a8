"""Rules on mask bands: scene classification, quality bits, cloud probability, or a mask of the user's own.

A rule is evaluated at the resolution of its mask band: the bad pixels of each group of classes are marked, each group
is cleaned by its own steps (opening, dilation ...) one after the other, and the groups are united.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2composite.errors import ParameterError
from s2composite.pixels.cloud_net import CloudNet
from s2composite.pixels.function_mask import Mask
from s2composite.pixels.kernels.tiles import enlarge
from s2composite.pixels.masks import Nodata, Rule, Saturated, SwathEdge, ValueRange, check_number
from s2composite.pixels.morphology import Step, apply_steps, halo_of, steps_of
from s2composite.pixels.temporal_mask import TemporalMask

__all__ = [
    "FMASK_CLASSES", "QA_BANDS", "QA_BITS", "QA_DEFAULTS", "QA_MISSING", "SCL", "SCL_CLASSES", "CloudProbability",
    "Fmask", "Group", "MaskRule", "QABits", "Usable", "resolve_rule", "rule_names", "upsample",
]  # fmt: skip

SCL_CLASSES = {
    "no data": 0, "saturated or defective": 1, "dark area pixels": 2, "cloud shadows": 3, "vegetation": 4,
    "bare soils": 5, "water": 6, "unclassified": 7, "cloud medium probability": 8, "cloud high probability": 9,
    "thin cirrus": 10, "snow or ice": 11,
}  # fmt: skip
"""Classes of Sentinel-2's scene classification."""

FMASK_CLASSES = {
    "odc": {"nodata": 0, "valid": 1, "cloud": 2, "shadow": 3, "snow": 4, "water": 5},
    "cfmask": {"valid": 0, "water": 1, "shadow": 2, "snow": 3, "cloud": 4, "nodata": 255},
}
"""Classes of Fmask, as products of Open Data Cube have it, and as CFmask and Fmask 4 write it."""

QA_BITS: dict[str, dict[str, tuple[int, int]]] = {
    "landsat": {
        "fill": (0x1, 0x1), "dilated cloud": (0x2, 0x2), "cirrus": (0x4, 0x4), "cloud": (0x8, 0x8),
        "cloud shadow": (0x10, 0x10), "snow": (0x20, 0x20), "clear": (0x40, 0x40), "water": (0x80, 0x80),
        "cloud medium": (0x300, 0x200), "cloud high": (0x300, 0x300), "cloud shadow high": (0xC00, 0xC00),
        "snow high": (0x3000, 0x3000), "cirrus high": (0xC000, 0xC000),
    },
    "hls": {
        "cirrus": (0x1, 0x1), "cloud": (0x2, 0x2), "adjacent": (0x4, 0x4), "cloud shadow": (0x8, 0x8),
        "snow": (0x10, 0x10), "water": (0x20, 0x20), "aerosol high": (0xC0, 0xC0), "fill": (0xFF, 0xFF),
    },
    "qa60": {"opaque cloud": (0x400, 0x400), "cirrus": (0x800, 0x800)},
}  # fmt: skip
"""Flags of Landsat Collection 2, HLS' Fmask and Sentinel-2 QA60: the bits they look at, and what these must be."""

# Flags that `QABits` drops where none are named
QA_DEFAULTS = {
    "landsat": ("dilated cloud", "cirrus", "cloud", "cloud shadow"),
    "hls": ("cloud", "adjacent", "cloud shadow"),
    "qa60": ("opaque cloud", "cirrus"),
}

# Flags of pixels that hold no observation: always dropped, never cleaned
QA_MISSING = {"landsat": ("fill",), "hls": ("fill",), "qa60": ()}

QA_BANDS = {"landsat": "QA_PIXEL", "hls": "Fmask", "qa60": "QA60"}  # usual name of the mask band

# Steps for all classes together, or a mapping from a class, or a tuple of classes, to its own steps
Cleanup = Iterable[Any] | Mapping[Any, Iterable[Any]] | None

_LANDSAT_QA = re.compile(r"bqa|(.*_)?qa_?pixel|pixel_?qa|qa", re.IGNORECASE)  # names of Landsat's quality bits


@dataclass(frozen=True, slots=True)
class Group:
    """Bad pixels of one kind, and how their mask is cleaned."""

    values: tuple[int, ...] = ()
    """Values of the mask band that are bad."""

    other_than: tuple[int, ...] = ()
    """If not empty, the values of the mask band besides which all are bad."""

    bits: tuple[tuple[int, int], ...] = ()
    """Pairs of a bit mask and the value under it that is bad."""

    above: float | None = None
    """Values above this are bad."""

    below: float | None = None
    """Values below this are bad."""

    steps: tuple[Step, ...] = ()
    """Operations on the mask of bad pixels, in order; radii in pixels of the mask band."""

    def bad(self, block: NDArray[Any], missing: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the bad pixels of ``block (t, y, x)``, cleaned; those that are missing are not looked at."""
        marked = np.zeros(block.shape, bool)
        if self.values:
            marked |= _is_one_of(block, self.values)
        if self.other_than:
            marked |= ~_is_one_of(block, self.other_than)
        for mask, value in self.bits:
            marked |= (block & np.uint16(mask)) == value
        if self.above is not None:
            marked |= block > self.above
        if self.below is not None:
            marked |= block < self.below
        return apply_steps(marked & ~missing, self.steps)


@dataclass(frozen=True, slots=True)
class MaskRule(Rule):
    """Drops observations by a mask band. Made by `SCL`, `QABits`, `Fmask`, `CloudProbability` and `Usable`."""

    band: str
    """Name of the mask band."""

    groups: tuple[Group, ...]
    """Kinds of bad pixels; an observation that is bad in any of them is dropped."""

    label: str = ""
    """How it was made, for metadata."""

    codings: tuple[tuple[str, tuple[Group, ...]], ...] = ()
    """If not empty, the coding of the band is yet to be known: the groups in each that it can be; see `in_coding`."""

    def __post_init__(self) -> None:
        if not isinstance(self.band, str) or not self.band.strip():
            raise ParameterError(f"the mask band is {self.band!r}; give its name")

    @property
    def halo(self) -> int:
        """Pixels of the mask band around a window that decide about the window's own."""
        return max((halo_of(group.steps) for group in self.groups), default=0)

    def valid(self, block: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which observations are valid.

        Parameters
        ----------
        block
            ``(t, y, x)`` of the mask band, with `halo` pixels around the window except where the raster ends: what
            lies outside the block changes nothing. Floats, which other libraries make of bands with missing values, are
            taken for the whole numbers that they are; NaN is bad.

        Returns
        -------
        valid
            ``(t, y, x)`` bool of the same shape, halo included.

        Raises
        ------
        ParameterError
            The band was interpolated, or the coding of Fmask is not known.
        """
        if self.codings:
            return self.in_coding(None).valid(block)
        classes = all(group.above is None and group.below is None for group in self.groups)
        valid = np.empty(block.shape, bool)
        for t in range(len(block)):  # one scene at a time stays in the cache
            scene = block[t : t + 1]
            missing = np.zeros(scene.shape, bool)
            if block.dtype.kind == "f":
                missing = ~(np.abs(scene) < 2.0**31)  # NaN, too
            if block.dtype.kind == "f" and classes:
                numbers = np.where(missing, 0, scene)
                scene = numbers.astype(np.int32)
                if (scene != numbers).any():
                    raise ParameterError(
                        f"the mask band {self.band!r} holds {numbers[scene != numbers][0]:g}, which is no class: it "
                        "was interpolated, so none of its classes is certain; resample mask bands by 'nearest'"
                    )
            bad = missing.copy()
            for group in self.groups:
                bad |= group.bad(scene, missing)
            valid[t : t + 1] = ~bad
        return valid

    def in_coding(self, coding: str | None) -> MaskRule:
        """Return the rule for a band of which the coding is known: ``"odc"``, ``"cfmask"``, ``"hls"``; None: it is not.

        A rule that was made for a coding stays as it is.

        Raises
        ------
        ParameterError
            The rule has to know its coding and cannot be in this one.
        """
        if not self.codings:
            return self
        if coding == "hls":
            raise ParameterError(f"the mask band {self.band!r} is that of HLS, which has bits: use QABits('hls')")
        groups = dict(self.codings)
        if coding is None and _LANDSAT_QA.fullmatch(self.band):
            raise ParameterError(
                f"the mask band {self.band!r} has the name of Landsat's quality bits, which are no classes of Fmask: "
                f"use QABits('landsat', band={self.band!r}), or if it does hold classes say which with "
                "Fmask(coding='cfmask') (0 clear, 4 cloud) or Fmask(coding='odc') (1 clear, 2 cloud)"
            )
        if coding is None:
            raise ParameterError(
                f"nothing says which coding of Fmask the mask band {self.band!r} has: give Fmask(coding='odc') (Open "
                "Data Cube: 1 clear, 2 cloud), Fmask(coding='cfmask') (0 clear, 4 cloud), or for bands of bits "
                "QABits('hls') or QABits('landsat')"
            )
        if coding not in groups:
            raise ParameterError(
                f"the mask band {self.band!r} has the coding {coding!r} of Fmask, and the rule classes that only "
                f"{', '.join(groups)} has; name the classes: {', '.join(FMASK_CLASSES[coding])}"
            )
        return replace(self, groups=groups[coding], codings=(), label=self.label.replace("Fmask", f"Fmask {coding}", 1))

    def __str__(self) -> str:
        return self.label or repr(self)


def SCL(  # noqa: N802 - used like the classes of rules on values
    classes: str | int | Iterable[str | int] = (
        "cloud shadows",
        "cloud medium probability",
        "cloud high probability",
        "thin cirrus",
    ),
    *,
    cleanup: Cleanup = None,
    band: str = "SCL",
) -> MaskRule:
    """Return the rule that drops classes of Sentinel-2's scene classification; by default clouds, shadows and cirrus.

    Snow is kept: it may be what the ground looks like. To drop it, too, name all classes that are not wanted:
    ``SCL(["cloud shadows", "cloud medium probability", "cloud high probability", "thin cirrus", "snow or ice"])``, or
    put ``SCL("snow or ice")`` beside ``SCL()``. Pixels that are saturated, dark or unclassified are kept, too.

    Parameters
    ----------
    classes
        Names or numbers of the classes to drop, one or several, see `s2composite.pixels.mask_bands.SCL_CLASSES`.
        ``"no data"`` is always dropped, without cleanup.
    cleanup
        Steps on the mask of bad pixels: ``[("opening", 2), ("dilation", 5)]`` (for short ``[2, 5]``) for all classes
        together, or a mapping for some of them: ``{"thin cirrus": [("dilation", 2)], ("cloud shadows", ...): ...}``.
        Classes that only the mapping names are dropped as well.
        Radii are in pixels of the mask band, 20 m for SCL.
    band
        Name of the mask band.

    Returns
    -------
    MaskRule
        For ``valid=`` of `composite`.

    Raises
    ------
    ParameterError
        An unknown class or operation.

    Examples
    --------
    >>> rule = SCL(["thin cirrus"], cleanup=[("dilation", 1)])
    >>> rule.valid(np.array([[[4, 4, 10, 4, 0, 4]]], np.uint8)).astype(int).tolist(), rule.halo
    ([[[1, 0, 0, 0, 0, 1]]], 1)
    """
    classes = _several(classes, "SCL class")
    groups = _groups_of_classes(SCL_CLASSES, classes, cleanup, "SCL class")
    return MaskRule(band, groups, _label("SCL", classes, cleanup))


def Fmask(  # noqa: N802
    classes: str | int | Iterable[str | int] = ("cloud", "shadow"),
    *,
    coding: str | None = None,
    cleanup: Cleanup = None,
    band: str = "fmask",
) -> MaskRule:
    """Return the rule that drops classes of Fmask; by default clouds and shadows.

    Snow and water are kept; ``Fmask(["cloud", "shadow", "snow"])`` drops snow, too.

    Parameters
    ----------
    classes
        Names or numbers of the classes to drop, one or several. No data is always dropped, without cleanup.
    coding
        ``"odc"``, as Open Data Cube has it: 0 no data, 1 valid, 2 cloud, 3 shadow, 4 snow, 5 water. ``"cfmask"``, as
        CFmask and Fmask 4 have it: 0 clear, 1 water, 2 shadow, 3 snow, 4 cloud, 255 no data. Default: what the source
        says: products of Geoscience Australia (``ga_...``, ``oa_fmask``) have Open Data Cube's, STAC items and
        datasets of Open Data Cube may list their classes; if nothing says it, `composite` raises an error that asks.
        HLS has bits: see `QABits`.
    cleanup, band
        As for `SCL`.

    Returns
    -------
    MaskRule
        For ``valid=`` of `composite`.

    Raises
    ------
    ParameterError
        An unknown class, coding or operation.

    Examples
    --------
    >>> Fmask(coding="odc").valid(np.array([[[0, 1, 2, 3, 5]]], np.uint8)).astype(int).tolist()
    [[[0, 1, 0, 0, 1]]]
    >>> Fmask(coding="cfmask").valid(np.array([[[0, 1, 2, 3, 4, 255]]], np.uint8)).astype(int).tolist()
    [[[1, 1, 0, 1, 0, 0]]]
    """
    if coding not in (None, *FMASK_CLASSES):
        raise ParameterError(f"unknown coding {coding!r} of Fmask; there are {', '.join(FMASK_CLASSES)}")
    classes = _several(classes, "Fmask class")
    label = _label(f"Fmask {coding}" if coding else "Fmask", classes, cleanup)
    if coding is not None:
        return MaskRule(band, _groups_of_classes(FMASK_CLASSES[coding], classes, cleanup, "Fmask class"), label)
    codings, problem = [], None
    for name, table in FMASK_CLASSES.items():
        try:
            codings.append((name, _groups_of_classes(table, classes, cleanup, "Fmask class")))
        except ParameterError as error:  # a number that is no class there
            problem = error
    if problem is not None and not codings:
        raise problem
    return MaskRule(band, (), label, tuple(codings))


def QABits(  # noqa: N802
    scheme: str = "landsat",
    flags: str | Iterable[str] | None = None,
    *,
    cleanup: Cleanup = None,
    band: str | None = None,
) -> MaskRule:
    """Return the rule that drops observations with flags set in a band of quality bits; by default those of clouds.

    Snow and water are kept; ``QABits("landsat", "snow")`` beside ``QABits("landsat")`` drops snow, too. QA60 has no bit
    for it.

    Parameters
    ----------
    scheme
        ``"landsat"`` (Collection 2, QA_PIXEL), ``"hls"`` (Fmask of Harmonized Landsat Sentinel) or ``"qa60"``
        (Sentinel-2).
    flags
        Names of flags, one or several, see `s2composite.pixels.mask_bands.QA_BITS`. Default: clouds, what is next to
        them and their shadows, and cirrus except for HLS, whose bit for it is reserved; of QA60, clouds and cirrus.
    cleanup
        As for `SCL`.
    band
        Name of the mask band; default ``"QA_PIXEL"``, ``"Fmask"`` or ``"QA60"``.

    Returns
    -------
    MaskRule
        For ``valid=`` of `composite`.

    Raises
    ------
    ParameterError
        An unknown scheme, flag or operation.

    Examples
    --------
    >>> QABits("qa60").valid(np.array([[[0, 1024, 2048]]], np.uint16)).astype(int).tolist()
    [[[1, 0, 0]]]
    """
    if scheme not in QA_BITS:
        raise ParameterError(f"unknown scheme {scheme!r} of QABits; there are {', '.join(QA_BITS)}")
    what = f"flag of {scheme}"
    flags = QA_DEFAULTS[scheme] if flags is None else _several(flags, what)
    table = QA_BITS[scheme]
    missing = [Group(bits=(table[name],)) for name in QA_MISSING[scheme]]
    groups = (*missing, *_groups("bits", table, flags, cleanup, what))
    return MaskRule(band or QA_BANDS[scheme], groups, _label(f"QABits {scheme}", flags, cleanup))


def CloudProbability(above: float = 40, *, cleanup: Cleanup = None, band: str = "CLDPRB") -> MaskRule:  # noqa: N802
    """Return the rule that drops observations whose cloud probability, in percent, is above a limit.

    Parameters
    ----------
    above
        Limit in percent; larger values are clouds.
    cleanup
        Steps, as for `SCL`.
    band
        Name of the mask band.

    Returns
    -------
    MaskRule
        For ``valid=`` of `composite`.

    Raises
    ------
    ParameterError
        An unknown operation, or a cleanup for classes.

    Examples
    --------
    >>> CloudProbability(30).valid(np.array([[[0, 30, 31]]], np.uint8)).astype(int).tolist()
    [[[1, 1, 0]]]
    """
    if isinstance(cleanup, Mapping):
        raise ParameterError("CloudProbability has no classes; give cleanup= as one list of steps")
    group = Group(above=above, steps=steps_of(cleanup))
    return MaskRule(band, (Group(below=0), group), _label(f"CloudProbability > {above:g}", (), cleanup))


def Usable(band: str = "valid", *, minimum: float | None = None, cleanup: Cleanup = None) -> MaskRule:  # noqa: N802
    """Return the rule for a mask band of your own, or for a score of how clear each pixel is.

    Parameters
    ----------
    band
        Name of the mask band.
    minimum
        The smallest value that may be used, such as 0.6 for Earth Engine's Cloud Score+, whose scores go from 0 (not
        clear) to 1. None: the band is a mask in which 0 (or False) marks what must not be used.
    cleanup
        Steps on what must not be used, as for `SCL`.

    Returns
    -------
    MaskRule
        For ``valid=`` of `composite`.

    Raises
    ------
    ParameterError
        `minimum` is no finite number, an unknown operation, or a cleanup for classes.

    Examples
    --------
    >>> Usable(cleanup=[("dilation", 1)]).valid(np.array([[[1, 1, 0, 1]]], np.uint8)).astype(int).tolist()
    [[[1, 0, 0, 0]]]
    >>> Usable("cs_cdf", minimum=0.6).valid(np.array([[[0.59, 0.6, 1, np.nan]]])).astype(int).tolist()
    [[[0, 1, 1, 0]]]
    """
    if isinstance(cleanup, Mapping):
        raise ParameterError("Usable has no classes; give cleanup= as one list of steps")
    if minimum is None:
        return MaskRule(band, (Group(values=(0,), steps=steps_of(cleanup)),), _label("Usable", (), cleanup))
    check_number("the minimum of Usable", minimum)
    if not np.isfinite(minimum):
        raise ParameterError(f"the minimum of Usable is {minimum}; give a finite number")
    group = Group(below=minimum, steps=steps_of(cleanup))
    return MaskRule(band, (group,), _label(f"Usable >= {minimum:g}", (), cleanup))


def upsample(
    valid: NDArray[np.bool_],
    factor: int,
    shape: tuple[int, int],
    *,
    top: int = 0,
    left: int = 0,
    memory: NDArray[np.bool_] | None = None,
) -> NDArray[np.bool_]:
    """Bring a mask ``(t, y, x)`` to the finer grid of the data: each pixel becomes `factor` x `factor` of them.

    ``shape (y, x)`` is that of the result, `top` and `left` its first row and column in pixels of the data from the
    corner of `valid`, which covers it. The result lies in `memory`, one-dimensional, if that is given.
    """
    height, width = shape
    covered = top + height <= valid.shape[1] * factor and left + width <= valid.shape[2] * factor
    if factor < 1 or top < 0 or left < 0 or not covered:
        raise ParameterError(
            f"a mask of {valid.shape[1:]} pixels, {factor} times coarser, does not cover {shape} pixels of the data "
            f"from ({top}, {left}) on; read more of it"
        )
    out = np.empty(len(valid) * height * width, bool) if memory is None else memory[: len(valid) * height * width]
    out = out.reshape(-1, height, width)
    if factor == 1:
        out[...] = valid[:, top : top + height, left : left + width]
    else:
        enlarge(np.ascontiguousarray(valid).view(np.uint8), factor, top, left, out.view(np.uint8))
    return out


def _is_one_of(block: NDArray[Any], values: tuple[int, ...]) -> NDArray[np.bool_]:
    # 0.05 ms for four of 512 x 512 classes, where a table of 256 takes 0.3 and np.isin 3.6
    found: NDArray[np.bool_] = block == values[0]
    for value in values[1:]:
        found |= block == value
    return found


def _groups_of_classes(
    table: Mapping[str, int], classes: Iterable[str | int], cleanup: Cleanup, what: str
) -> tuple[Group, ...]:
    """Return the groups of classes to drop, and before them that of pixels without a class."""
    known = tuple(value for name, value in table.items() if name not in ("no data", "nodata"))
    return (Group(other_than=known), *_groups("values", table, classes, cleanup, what))


def _groups(
    field: str, table: Mapping[str, Any], classes: Iterable[str | int], cleanup: Cleanup, what: str
) -> list[Group]:
    """Return the groups of classes that are cleaned together: one, or one for each entry of a mapping."""

    def group(codes: Iterable[Any], steps: Iterable[Any] | None) -> Group:
        fields: dict[str, Any] = {field: tuple(codes), "steps": steps_of(steps)}
        return Group(**fields)

    chosen = [_code(table, name, what) for name in classes]
    if not isinstance(cleanup, Mapping):
        return [group(chosen, cleanup)]
    groups = []
    for key, steps in cleanup.items():
        codes = [_code(table, name, what) for name in _several(key, what)]
        groups.append(group(codes, steps))
        chosen = [code for code in chosen if code not in codes]
    return [*groups, group(chosen, ())] if chosen else groups


def _several(classes: Any, what: str) -> tuple[Any, ...]:
    """Return classes as they may be given: several, or one alone, by name or number."""
    if isinstance(classes, (str, int, np.integer)):
        return (classes,)
    if not isinstance(classes, Iterable) or isinstance(classes, bytes):
        raise ParameterError(f"{what} {classes!r}: give one or several, such as {what} names in a list")
    return tuple(classes)


def _code(table: Mapping[str, Any], name: Any, what: str) -> Any:
    """Return what stands for a class given by number or by name, in any case, with blanks or underscores.

    That is its number in the mask band, or for a flag its bits.
    """
    if isinstance(name, str):
        spoken = name.replace("_", " ").lower()
        if spoken in table:
            return table[spoken]
    elif not isinstance(name, bool):
        for code in table.values():
            if code == name:
                return code
    raise ParameterError(f"unknown {what} {name!r}; there are {', '.join(table)}")


def _label(name: str, classes: Iterable[Any], cleanup: Cleanup) -> str:
    """Return the rule as metadata have it."""
    parts = [", ".join(map(str, classes)), f"cleanup {cleanup}" if cleanup else ""]
    inside = "; ".join(part for part in parts if part)
    return f"{name}({inside})" if inside else name


_RULES: dict[str, Callable[..., Rule]] = {
    "cloud_net": CloudNet,
    "cloud_probability": CloudProbability,
    "fmask": Fmask,
    "mask": Mask,
    "nodata": Nodata,
    "qa_bits": QABits,
    "saturated": Saturated,
    "scl": SCL,
    "swath_edge": SwathEdge,
    "temporal_mask": TemporalMask,
    "usable": Usable,
    "value_range": ValueRange,
}


def rule_names(*, imports: bool = True) -> tuple[str, ...]:
    """Return the names of rules; without `imports` only of those that import nothing that a parameter names."""
    return tuple(name for name in _RULES if imports or name != "mask")


def resolve_rule(name: str, **params: Any) -> Rule:
    """Return a rule by name, with its parameters.

    Raises
    ------
    ParameterError
        The name or a parameter is unknown, or a parameter has an invalid value.

    Examples
    --------
    >>> resolve_rule("value_range", low=1, high=10000)
    ValueRange(low=1, high=10000, bands=None)
    """
    if name not in _RULES:
        raise ParameterError(f"unknown rule {name!r}; there are {', '.join(_RULES)}")
    known = list(inspect.signature(_RULES[name]).parameters)
    for unknown in sorted(set(params) - set(known)):
        raise ParameterError(f"rule {name!r} has no parameter {unknown!r}; it has {', '.join(known)}")
    made = {key: tuple(value) if isinstance(value, list) else value for key, value in params.items()}
    try:
        return _RULES[name](**made)
    except (TypeError, ValueError) as problem:  # a parameter is missing, or of a type that it cannot have
        raise ParameterError(f"rule {name!r} cannot be made with {params}: {problem}") from problem
