"""YAML documents that remember their lines, so that a mistake is named where it was made: file, line, key.

A `Document` is plain values plus, for each key and list element, the place it was written at. `validated` checks the
values against a pydantic model and turns what pydantic finds into one `JobError` that a person can act on.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from s2composite.errors import JobError
from s2composite.running.jobs.yaml_text import VARIABLES, Keys, Place, dotted, parse_yaml, shown

__all__ = ["Document", "Expected", "Strict", "parse_text", "read_document", "validated", "variables_in", "with_setting"]

ModelT = TypeVar("ModelT", bound=BaseModel)


class Strict(BaseModel):
    """A frozen pydantic model without conversions: an unknown key is an error, ``"2"`` is not a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a field takes, in words, for its error message: ``Annotated[int, Expected("a number of pixels")]``."""

    text: str
    """Completes the sentence "expected ..."."""


@dataclass(frozen=True, slots=True)
class Document:
    """A mapping and where each of its values came from."""

    name: str
    """The file, or ``"job"``."""

    values: dict[str, Any]
    """Plain Python: dict, list, str, int, float, bool, None."""

    places: Mapping[Keys, Place]
    """For each key and list element; empty for a mapping made in Python."""

    def place(self, keys: Keys) -> Place:
        """Return the place of `keys`, or of the nearest level above that has one."""
        for stop in range(len(keys), -1, -1):
            if keys[:stop] in self.places:
                return self.places[keys[:stop]]
        return Place(self.name, None)


def read_document(
    source: str | os.PathLike[str] | Mapping[str, Any], kind: str = "job", given: Mapping[str, str] | None = None
) -> Document:
    """Return a document from a file, from text, or from a mapping.

    A string that holds a newline or ``": "`` is text, any other string a path. `kind` names it where there is no file,
    `given` are values for variables that the file sets itself.
    """
    if isinstance(source, Mapping):
        return Document(kind, dict(source), {})
    if isinstance(source, str) and ("\n" in source or ": " in source or not source.strip()):
        return parse_text(source, kind, given)
    if not isinstance(source, (str, os.PathLike)):
        raise JobError(f"{kind}: {source!r} is no {kind}; give a path, YAML text or a mapping", key=None, line=None)
    name = os.fspath(source)
    try:
        return parse_text(Path(source).read_text("utf-8"), name, given)
    except FileNotFoundError:
        raise JobError(
            f"{name}: there is no such {kind} file; check the path (it is relative to {Path.cwd()})"
        ) from None
    except OSError as error:
        raise JobError(f"{name}: the {kind} file cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JobError(f"{name}: not a text file in UTF-8 (byte {error.start}); a {kind} is YAML text") from error
    except ValueError as error:  # NUL in its name
        raise JobError(f"{name!r}: the {kind} file cannot be read: {error}") from error


def parse_text(text: str, name: str, given: Mapping[str, str] | None = None) -> Document:
    """Return the document in YAML `text`, with ``${VARIABLES}`` filled in: its own, or those of the environment.

    Raises
    ------
    JobError
        Not YAML, a key given twice, a variable that is not set, not a mapping, empty; carries ``key`` and ``line``.
    """
    values, places = parse_yaml(text, name, given)
    line = places[()].line if places else 1
    if values is None:
        raise JobError(f"{name}, line {line}: is empty; it needs lines such as 'key: value'", key=None, line=line)
    if not isinstance(values, dict):
        raise JobError(f"{name}, line {line}: expected 'key: value' lines, got {shown(values)}", key=None, line=line)
    return Document(name, values, places)


def variables_in(settings: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Return the variables that settings of the command line give (``variables.year=2023``), and the other settings."""
    begins = f"{VARIABLES}."
    pairs = [s.removeprefix(begins).partition("=") for s in settings if s.startswith(begins) and "=" in s]
    others = [s for s in settings if not (s.startswith(begins) and "=" in s)]
    return {name: value for name, _, value in pairs}, others


def with_setting(document: Document, setting: str) -> Document:
    """Return `document` with one ``key=value`` of the command line put in; the key may be dotted, the value is YAML."""
    key, equals, text = setting.partition("=")
    if not equals or not all(key.split(".")):
        raise JobError(f"-s {setting}: expected key=value, for example -s chunks=1024", key=key, line=None)
    here = f"-s {setting}"
    value, _ = parse_yaml(text, here)
    keys = tuple(key.split("."))
    for stop in range(1, len(keys)):
        level = _get(document.values, keys[:stop])
        if level is not None and not isinstance(level, Mapping):
            raise JobError(
                f"{here}: '{dotted(keys[:stop])}' is {shown(level)} here; give all of it", key=key, line=None
            )
    kept = {path: place for path, place in document.places.items() if path[: len(keys)] != keys}
    return Document(document.name, _put(document.values, keys, value), {**kept, keys: Place(here, None)})


def _get(values: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    for key in keys:
        values = values.get(key, {})
    return values


def _put(values: Mapping[str, Any] | None, keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    """Return a copy of `values` with `value` at `keys`."""
    key, *inner = keys
    level = values or {}
    return {**level, key: _put(level.get(key), tuple(inner), value) if inner else value}


@dataclass(frozen=True, slots=True)
class _Problem:
    """One thing that is wrong with a document."""

    rank: tuple[bool, int]
    key: str
    place: Place
    message: str


def validated(model: type[ModelT], document: Document) -> ModelT:
    """Return `document` as a `model`; a JobError names the first mistake in full and the keys of the others."""
    try:
        return model.model_validate(document.values)
    except ValidationError as error:
        problems = [_problem(model, document, details) for details in error.errors(include_url=False)]
    first, *rest = sorted(problems, key=lambda p: p.rank)
    others = {p.key for p in rest if not f"{p.key}.".startswith(f"{first.key}.")}
    also = f" (also wrong: {', '.join(sorted(others))})" if others else ""
    raise JobError(f"{first.place.where}: {first.message}{also}", key=first.key, line=first.place.line)


def _problem(model: type[BaseModel], document: Document, details: ErrorDetails) -> _Problem:
    keys, owner, field = _located(model, details, document.values)
    key, place = dotted(keys), document.place(keys)
    unknown = details["type"] == "extra_forbidden"
    message = _unknown(key, str(keys[-1]), owner) if unknown else _wrong(key, place, field, details)
    return _Problem((not unknown, place.line or 0), key, place, message)


def _located(
    model: type[BaseModel], details: ErrorDetails, values: Any
) -> tuple[Keys, type[BaseModel], FieldInfo | None]:
    """Return the keys that pydantic's location stands for, the model they end in, and the field of that model.

    Pydantic puts the names of union members between the keys; they are taken out.
    """
    keys: list[str | int] = []
    choices: list[type[BaseModel]] = []
    field: FieldInfo | None = None
    for part in details["loc"]:
        chosen = [choice for choice in choices if _tag(choice) == part]
        if chosen:
            model, choices = chosen[0], []
            continue
        if len(choices) == 1 and part in choices[0].model_fields:  # the only one has no name of its own
            model = choices[0]
        field = model.model_fields.get(str(part), field)
        choices = [] if field is None else list(_models(field.annotation))
        with suppress(KeyError, IndexError, TypeError):
            values = values[part]  # a part that is no key of the values is left out
            keys.append(part)
    return (*keys, str(details["loc"][-1])) if _is_missing_key(details) else tuple(keys), model, field


def _is_missing_key(details: ErrorDetails) -> bool:
    return details["type"] == "missing" and isinstance(details["loc"][-1], str)


def _unknown(key: str, name: str, owner: type[BaseModel]) -> str:
    valid = list(owner.model_fields)
    near = difflib.get_close_matches(name, valid, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"valid keys: {', '.join(valid)}"
    return f"unknown key '{key}'; {hint}"


def _wrong(key: str, place: Place, field: FieldInfo | None, details: ErrorDetails) -> str:
    if details["type"] == "value_error":
        return f"{key}: {details['ctx']['error']}"
    if details["type"] == "union_tag_invalid":
        return f"{key}: {_unknown_type(details['ctx'])}"
    notes = [note.text for note in (field.metadata if field is not None else ()) if isinstance(note, Expected)]
    expected = notes[0] if notes else details["msg"].removeprefix("Input should be ")
    if _is_missing_key(details):
        return f"key '{key}' is missing; expected {expected}"
    if details["input"] is None:
        return f"{key}: has no value; expected {expected}"
    got = repr(place.written) if place.written is not None else shown(details["input"])
    return f"{key}: expected {expected}, got {got}"


def _unknown_type(facts: Mapping[str, Any]) -> str:
    valid = [tag.strip("' ") for tag in facts["expected_tags"].split(",")]
    near = difflib.get_close_matches(facts["tag"], valid, 1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    return f"unknown type '{facts['tag']}'; {hint}Valid types: {', '.join(valid)}"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _tag(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("type")
    return None if field is None else field.default
