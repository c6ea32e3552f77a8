"""YAML files of jobs and clusters: variables, types of fields, and errors that name file, line and key."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from dask.utils import parse_bytes
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from s2composite.errors import JobError

__all__ = [
    "VARIABLES", "WHOLE", "Count", "Credentials", "Dashboard", "Document", "Environment", "Expected",
    "FilePath", "Finite", "KeyValueError", "Keys", "Memory", "Place", "Positive", "SomeTexts", "Strict", "Text",
    "Texts", "Variable", "dotted", "parse_text", "parse_yaml", "read_document", "shown", "validated",
    "variables_in", "with_setting", "without_variables",
]  # fmt: skip

Keys = tuple[str | int, ...]  # path of a value: ``("cluster", "workers")``, ``("bbox", 2)``

VARIABLES = "variables"  # the key under which a file defines its own variables

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")  # of a variable
# Names of environment variables whose values are secrets.
SECRET = re.compile(r"SECRET|TOKEN|PASSW|PASSPHRASE|CONNECTION_STRING|ACCESS_KEY$|ACCOUNT_KEY|API_KEY|(^|_)SAS($|_)")

# ``${NAME}``, ``${NAME:-default}``; ``$${NAME}`` is the literal text ``${NAME}``.
_VARIABLE = re.compile(r"\$(\$?)\{([^{}\n]*)\}")
# Placeholders for the characters of a variable while YAML is parsed, which would read the braces as a mapping.
_MARKS = str.maketrans("${}", "\ue000\ue001\ue002")
_MARKED = re.compile("\ue000(\ue000?)\ue001([^\ue000-\ue002]*)\ue002")  # a variable with those marks


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was defined."""

    where: str  # ``"job.yaml, line 4"``, or the command line's ``"-s chunks=1"``
    line: int | None  # in the file, from 1; None where there is no file
    # The original text, if an environment variable was substituted: errors quote this, not the secret.
    written: str | None = None

    def error(self, message: str, key: str | None = None) -> JobError:
        """Return an error that names this place."""
        return JobError(f"{self.where}: {message}", key=key, line=self.line)


def parse_yaml(text: str, name: str, given: Mapping[str, str] | None = None) -> tuple[Any, dict[Keys, Place]]:
    """Return the plain values of YAML `text`, and the place of each key and list element.

    `name` names the text in errors. `given` are values of variables that override those under its key ``variables``.
    Raises a JobError for invalid YAML, a duplicate key, or a variable that is not set.
    """
    try:
        loader = _Loader(_VARIABLE.sub(_marked, text))
        node = loader.get_single_node()
        walk = _Walk(loader, name, {}, _own_variables(node, name, given or {}))
        return (None if node is None else walk.value(node, ())), walk.places
    except yaml.YAMLError as error:
        problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
        start = getattr(error, "context_mark", None)
        mark = getattr(error, "problem_mark", None) or start
        if start is not None and getattr(error, "context", None):
            problem += f", {error.context} that starts on line {start.line + 1}"  # type: ignore[attr-defined] # a MarkedYAMLError
        where = name if mark is None else f"{name}, line {mark.line + 1}, column {mark.column + 1}"
        line = None if mark is None else mark.line + 1
        raise JobError(f"{where}: not valid YAML: {problem}", key=None, line=line) from error
    except RecursionError:
        raise JobError(f"{name}: nested too deeply, or it refers to itself; write the values out") from None


def _place(node: yaml.Node, name: str) -> Place:
    line = node.start_mark.line + 1
    return Place(f"{name}, line {line}", line)


def _as_written(text: str) -> str:
    return text.translate({mark: sign for sign, mark in _MARKS.items()})


class _Loader(yaml.SafeLoader):
    """SafeLoader that keeps dates as text: ``2023-06-01``."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class _Walk:
    """One pass over a tree of YAML nodes that collects values and places."""

    loader: _Loader
    name: str
    places: dict[Keys, Place]
    variables: Mapping[str, str]

    def value(self, node: Any, keys: Keys) -> Any:
        """Return the plain value of `node`, whose path is `keys`."""
        self.places.setdefault(keys, _place(node, self.name))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*keys, index)) for index, child in enumerate(node.value)]
        text = _filled_in(node.value, self.places[keys], dotted(keys), self.variables)
        if text != node.value:
            self.places[keys] = replace(self.places[keys], written=_as_written(node.value))
            if node.style is not None:  # quoted: text stays text
                return text
            tag = self.loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call] # PyYAML's
            node = yaml.ScalarNode(tag, text, node.start_mark, node.end_mark)
        try:
            return self.loader.construct_object(node)
        # such as '!!int abc', '!!bool abc', '!!timestamp abc': PyYAML's constructors raise different exceptions
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        seen: dict[str, Place] = {}
        for key_node, _ in node.value:
            key, place = key_node.value, _place(key_node, self.name)
            if not isinstance(key, str):
                raise place.error("a key must be a word, got a list or mapping")
            if key in seen:
                path = dotted((*keys, key))
                raise place.error(f"key '{path}' is given twice (first on line {seen[key].line}); keep one", path)
            seen[key] = place
        self.loader.flatten_mapping(node)  # '<<' merges an anchored mapping; own keys come last and override it
        values = {}
        for key_node, value_node in node.value:
            here = (*keys, key_node.value)
            self.places[here] = _place(key_node, self.name)
            values[key_node.value] = self.value(value_node, here)
        return values


def _own_variables(root: yaml.Node | None, name: str, given: Mapping[str, str]) -> Mapping[str, str]:
    """Remove the variables of a file from its top level and return them, overridden by the given ones.

    Values may contain environment variables.
    """
    found: dict[str, str] = {}
    own = []
    if isinstance(root, yaml.MappingNode):
        own = [node for key, node in root.value if key.value == VARIABLES]
        root.value = [pair for pair in root.value if pair[0].value != VARIABLES]
    for mapping in own:
        if not isinstance(mapping, yaml.MappingNode):
            where = f"{name}, line {mapping.start_mark.line + 1}"
            raise JobError(f"{where}: {VARIABLES}: expected names and values, such as {{year: 2023}}", key=VARIABLES)
        for key_node, value_node in mapping.value:
            place, key = _place(key_node, name), f"{VARIABLES}.{key_node.value}"
            if not isinstance(value_node, yaml.ScalarNode) or not NAME.fullmatch(str(key_node.value)):
                raise place.error(f"{key}: a variable has a name of letters, digits and _, and a text or number", key)
            found[key_node.value] = _filled_in(value_node.value, place, key, {})
    for key in given:
        if key not in found:
            near = difflib.get_close_matches(key, found, 1) or list(found) or ["none"]
            raise JobError(f"-s {VARIABLES}.{key}: {name} sets no such variable; it sets {', '.join(near)}", key=key)
    return {**found, **given}


def _filled_in(text: str, place: Place, key: str, variables: Mapping[str, str]) -> str:
    def replacement(match: re.Match[str]) -> str:
        escaped, inside = match.groups()
        if escaped:
            return _as_written(match.group()[1:])
        name, _, default = inside.partition(":-")
        value = variables.get(name, os.environ.get(name, default if ":-" in inside else None))
        if value is None:
            near = difflib.get_close_matches(name, variables, 1)
            meant = f"did you mean {near[0]!r}? Else " if near else ""
            where = f"{place.where}: {key}" if key else place.where
            message = f"{where}: the environment variable {name or '${}'!r} is not set; {meant}"
            raise JobError(
                f"{message}export it, or write ${{{name}:-default}}", key=key, line=place.line, variable=name
            )
        return value

    return _MARKED.sub(replacement, text)


def shown(value: Any) -> str:
    """Return `value` shortened to fit one line of a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def dotted(keys: Keys) -> str:
    """Return keys as written in messages and on the command line."""
    return ".".join(str(key) for key in keys)


ModelT = TypeVar("ModelT", bound=BaseModel)


class KeyValueError(ValueError):
    """A mistake in the value of one key of a model that only others show: validators of the whole model raise it."""

    def __init__(self, key: str, message: str) -> None:
        super().__init__(message)
        self.key = key


class Strict(BaseModel):
    """A frozen pydantic model without conversions: an unknown key is an error, ``"2"`` is not a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True)
class Expected:
    """Description of a field's valid values for its error: ``Annotated[int, Expected("a number of pixels")]``."""

    text: str  # completes the sentence "expected ..."


@dataclass(frozen=True, slots=True)
class Document:
    """A mapping and the origin of each of its values."""

    name: str  # the file, or ``"job"``
    values: dict[str, Any]  # plain Python: dict, list, str, int, float, bool, None
    places: Mapping[Keys, Place]  # of each key and list element; empty for a mapping made in Python

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

    A string with a newline or ``": "`` is text, any other string a path. `kind` names the document if there is no file;
    `given` overrides variables that the file defines.
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
    """Return the document in YAML `text`, with ``${VARIABLES}`` substituted: its own, or environment variables."""
    values, places = parse_yaml(text, name, given)
    whole = places.get((), Place(f"{name}, line 1", 1))
    if values is None:
        raise whole.error("is empty; it needs lines such as 'key: value'")
    if not isinstance(values, dict):
        raise whole.error(f"expected 'key: value' lines, got {shown(values)}")
    return Document(name, values, places)


def _marked(match: re.Match[str]) -> str:
    escaped, inside = match.groups()
    return f"${escaped}{{".translate(_MARKS) + inside + "}".translate(_MARKS)


def without_variables(text: str) -> str:
    """Return YAML text with variables escaped: ``$${NAME}`` for ``${NAME}``."""
    return _VARIABLE.sub(r"$\g<0>", text)


def variables_in(settings: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Split command-line settings into variables (``variables.year=2023``) and other settings."""
    begins = f"{VARIABLES}."
    pairs = [s.removeprefix(begins).partition("=") for s in settings if s.startswith(begins) and "=" in s]
    others = [s for s in settings if not (s.startswith(begins) and "=" in s)]
    return {name: value for name, _, value in pairs}, others


def with_setting(document: Document, setting: str) -> Document:
    """Return `document` with a ``key=value`` from the command line; the key may be dotted, the value is YAML."""
    key, equals, text = setting.partition("=")
    here, keys = Place(f"-s {setting}", None), tuple(key.split("."))
    if not equals or not all(keys):
        raise here.error("expected key=value, for example -s chunks=1024", key)
    value, _ = parse_yaml(text, here.where)
    values = level = dict(document.values)
    for depth, name in enumerate(keys[:-1], 1):
        inner = level.get(name)
        if inner is not None and not isinstance(inner, Mapping):
            raise here.error(f"'{dotted(keys[:depth])}' is {shown(inner)} here; give all of it", key)
        level[name] = dict(inner or {})
        level = level[name]
    level[keys[-1]] = value
    kept = {path: place for path, place in document.places.items() if path[: len(keys)] != keys}
    return Document(document.name, values, {**kept, keys: here})


def validated(model: type[ModelT], document: Document) -> ModelT:
    """Return `document` as a `model`; a JobError describes the first mistake and names the keys of the others."""
    try:
        return model.model_validate(document.values)
    except ValidationError as error:
        mistakes = error.errors(include_url=False)
    problems = []  # for each: whether it is a value, its line, place, key and message; unknown keys come first
    for details in mistakes:
        keys, owner, field = _located(model, details, document.values)
        key, place = dotted(keys), document.place(keys)
        unknown = details["type"] == "extra_forbidden"
        message = _unknown(key, str(keys[-1]), owner) if unknown else _wrong(key, place, field, details)
        problems.append((not unknown, place.line or 0, place, key, message))
    (_, _, place, key, message), *rest = sorted(problems, key=lambda problem: problem[:2])
    others = {other for *_, other, _ in rest if not f"{other}.".startswith(f"{key}.")}
    also = f" (also wrong: {', '.join(sorted(others))})" if others else ""
    raise place.error(f"{message}{also}", key)


def _located(
    model: type[BaseModel], details: ErrorDetails, values: Any
) -> tuple[Keys, type[BaseModel], FieldInfo | None]:
    """Return the keys for pydantic's location, the model they end in, and the field of that model.

    Pydantic adds the names of union members between the keys; these are removed.
    """
    keys: list[str | int] = []
    choices: list[type[BaseModel]] = []
    field: FieldInfo | None = None
    mistake = details.get("ctx", {}).get("error")
    for part in (*details["loc"], *((mistake.key,) if isinstance(mistake, KeyValueError) else ())):
        tagged = ((choice, choice.model_fields.get("type")) for choice in choices)
        chosen = [choice for choice, tag in tagged if tag is not None and part in get_args(tag.annotation)]
        if chosen:
            model, choices = chosen[0], []
            continue
        # a single choice has no name in the location
        unknown = details["type"] == "extra_forbidden" and part == details["loc"][-1]
        if len(choices) == 1 and (unknown or part in choices[0].model_fields):
            model = choices[0]
        field = model.model_fields.get(str(part), field)
        choices = [] if field is None else list(_models(field.annotation))
        with suppress(KeyError, IndexError, TypeError):
            values = values[part]  # parts that are not keys of the values are skipped
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
        tag, valid = details["ctx"]["tag"], [tag.strip("' ") for tag in details["ctx"]["expected_tags"].split(",")]
        near = difflib.get_close_matches(tag, valid, 1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return f"{key}: unknown type '{tag}'; {hint}Valid types: {', '.join(valid)}"
    notes = [note.text for note in (field.metadata if field is not None else ()) if isinstance(note, Expected)]
    expected = notes[0] if notes else details["msg"].removeprefix("Input should be ")
    if _is_missing_key(details):
        return f"key '{key}' is missing; expected {expected}"
    if details["input"] is None:
        return f"{key}: has no value; expected {expected}"
    got = repr(place.written) if place.written is not None else shown(details["input"])
    return f"{key}: expected {expected}, got {got}"


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)


def _expanded_path(path: str) -> str:
    """Return a path with ``~`` expanded, a URL unchanged."""
    return path if "://" in path else os.path.expanduser(path)  # noqa: PTH111 - Path drops a trailing slash


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _non_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty; give it a value or leave the key out")
    return value


def _memory(text: str) -> str:
    message = f"expected memory with its unit, such as '4GB', got {text!r}"
    try:
        size = parse_bytes(text)
    except ValueError:
        raise ValueError(message) from None
    if size < 100_000_000:
        raise ValueError(f"{message}, which is {size} bytes: too little")
    return text


def _number(value: Any) -> Any:
    """Return ``"1e-4"`` as a number: it is one in YAML 1.2, but text in YAML 1.1, which needs a decimal point."""
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+", value)
    return float(value) if is_number else value


Text = Annotated[str, BeforeValidator(_text), AfterValidator(_non_empty)]
FilePath = Annotated[Text, AfterValidator(_expanded_path)]
Memory = Annotated[str, AfterValidator(_memory)]
Finite = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[Finite, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
WHOLE = Expected("a whole number from 1")


def _environment_text(value: Any) -> Any:
    """Return a number as text for an environment variable; raise for YAML's ``yes``, which was read as a boolean."""
    if isinstance(value, bool):
        raise ValueError("is read as true or false; put the value in quotes, such as 'YES'")  # noqa: TRY004 - pydantic
    return str(value) if isinstance(value, int | float) else value


def _no_secrets(environment: dict[str, str]) -> dict[str, str]:
    """Raise for names whose values are secrets: options are printed, logged and stored next to results."""
    for name in environment:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of an environment variable")
        if SECRET.search(name) and not name.endswith("_FILE"):
            raise ValueError(
                f"the value of {name} is a secret; write its name under 'credentials' instead, and set the variable "
                "where s2composite is started"
            )
    return environment


def _variable(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError(f"expected the name of an environment variable, not its value; got {len(name)} characters")
    return name


EnvironmentText = Annotated[str, BeforeValidator(_environment_text)]
Variable = Annotated[str, AfterValidator(_variable)]
AsList = PlainSerializer(lambda v: list(v) if isinstance(v, tuple) else v)  # as the classes of clusters take them
Texts = Annotated[tuple[Text, ...], Field(strict=False), AsList]
SomeTexts = Annotated[tuple[Text, ...], Field(strict=False, min_length=1), AsList]
Environment = Annotated[
    dict[str, EnvironmentText], AfterValidator(_no_secrets), Expected("environment variables, {GDAL_CACHEMAX: 64}")
]
Credentials = Annotated[
    tuple[Variable, ...],
    Field(strict=False),
    Expected("a list of names of environment variables, such as [AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY]"),
    AsList,
]


Dashboard = Annotated[str, Field(pattern=r":\d+$"), Expected("an address such as ':8787'")]
