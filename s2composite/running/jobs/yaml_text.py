"""YAML text: plain values, the place of each, and variables filled in: the file's own, else the environment's."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from s2composite.errors import JobError

__all__ = ["VARIABLES", "Keys", "Place", "dotted", "parse_yaml", "shown"]

Keys = tuple[str | int, ...]
"""Where a value sits: ``("cluster", "workers")``, ``("bbox", 2)``."""

VARIABLES = "variables"
"""The key under which a file sets variables of its own."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_VARIABLE = re.compile(r"\$(\$?)\{([^{}\n]*)\}")
"""``${NAME}``, ``${NAME:-default}``; ``$${NAME}`` stands for the text ``${NAME}``."""

_MARKS = str.maketrans("${}", "\ue000\ue001\ue002")
"""What the signs of a variable become before YAML sees them, which would take the braces for a mapping."""

_MARKED = re.compile("\ue000(\ue000?)\ue001([^\ue000-\ue002]*)\ue002")
"""A variable with those marks."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a value was written."""

    where: str
    """``"job.yaml, line 4"``, or the command line's ``"-s chunks=1"``."""

    line: int | None
    """Line in the file, from 1; None where there is no file."""

    written: str | None = None
    """The text that stands there, where an environment variable was filled in: errors quote this, not the secret."""


def parse_yaml(text: str, name: str, given: Mapping[str, str] | None = None) -> tuple[Any, dict[Keys, Place]]:
    """Return the plain values of YAML `text`, and the place of each key and list element.

    Parameters
    ----------
    name
        What the text is called in errors.
    given
        Values of its variables that win over those under its key ``variables``.

    Raises
    ------
    JobError
        Not YAML, a key given twice, a variable that is not set; carries ``key`` and ``line``.
    """
    try:
        loader = _Loader(_VARIABLE.sub(lambda match: match.group().translate(_MARKS), text))
        node = loader.get_single_node()
        walk = _Walk(loader, name, {}, _own_variables(node, name, given or {}))
        return (None if node is None else walk.value(node, ())), walk.places
    except yaml.YAMLError as error:
        raise _syntax_error(name, error) from error
    except RecursionError:
        raise JobError(f"{name}: nested too deeply, or it refers to itself; write the values out") from None


def _as_written(text: str) -> str:
    return text.translate({mark: sign for sign, mark in _MARKS.items()})


class _Loader(yaml.SafeLoader):
    """SafeLoader that leaves dates as they are written: ``2023-06-01`` is text for whoever asked for a date."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


@dataclass(frozen=True, slots=True)
class _Walk:
    """One pass over a tree of YAML nodes, which collects values and places."""

    loader: _Loader
    name: str
    places: dict[Keys, Place]
    variables: Mapping[str, str]

    def value(self, node: yaml.Node, keys: Keys) -> Any:
        """Return the plain value of `node`, which sits at `keys`."""
        self.places.setdefault(keys, self._place(node))
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, keys)
        if isinstance(node, yaml.SequenceNode):
            return [self.value(child, (*keys, index)) for index, child in enumerate(node.value)]
        return self._scalar(node, keys)

    def _place(self, node: yaml.Node, written: str | None = None) -> Place:
        line = node.start_mark.line + 1
        return Place(f"{self.name}, line {line}", line, written)

    def _mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        seen: dict[str, int] = {}
        for key_node, _ in node.value:
            key, line = key_node.value, key_node.start_mark.line + 1
            if not isinstance(key, str):
                raise JobError(
                    f"{self.name}, line {line}: a key must be a word, got a list or mapping", key=None, line=line
                )
            if key in seen:
                path = dotted((*keys, key))
                message = f"{self.name}, line {line}: key '{path}' is given twice (first on line {seen[key]}); keep one"
                raise JobError(message, key=path, line=line)
            seen[key] = line
        self.loader.flatten_mapping(node)  # '<<' brings in an anchored mapping; own keys come last and win
        return dict(self._items(node, keys))

    def _items(self, node: yaml.MappingNode, keys: Keys) -> Iterator[tuple[str, Any]]:
        for key_node, value_node in node.value:
            here = (*keys, key_node.value)
            self.places[here] = self._place(key_node)
            yield key_node.value, self.value(value_node, here)

    def _scalar(self, node: Any, keys: Keys) -> Any:
        text = _filled_in(node.value, self.places[keys], dotted(keys), self.variables)
        if text == node.value:
            return self._constructed(node)
        self.places[keys] = replace(self.places[keys], written=_as_written(node.value))
        if node.style is not None:  # quoted: text stays text
            return text
        tag = self.loader.resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call] # PyYAML's
        return self._constructed(yaml.ScalarNode(tag, text, node.start_mark, node.end_mark))

    def _constructed(self, node: yaml.Node) -> Any:
        try:
            return self.loader.construct_object(node)
        # such as '!!int abc', '!!bool abc', '!!timestamp abc': each of PyYAML's constructors fails in its own way
        except (ValueError, LookupError, AttributeError, TypeError) as error:
            raise yaml.constructor.ConstructorError(None, None, str(error), node.start_mark) from error


def _own_variables(root: yaml.Node | None, name: str, given: Mapping[str, str]) -> Mapping[str, str]:
    """Take the variables of a file out of its top level, and return them, those that are given in their place."""
    found: dict[str, str] = {}
    if isinstance(root, yaml.MappingNode):
        for key_node, value_node in root.value:
            if key_node.value == VARIABLES:
                found |= _texts(value_node, name)
        root.value = [pair for pair in root.value if pair[0].value != VARIABLES]
    for key in given:
        if key not in found:
            near = difflib.get_close_matches(key, found, 1) or list(found) or ["none"]
            raise JobError(f"-s {VARIABLES}.{key}: {name} sets no such variable; it sets {', '.join(near)}", key=key)
    return {**found, **given}


def _texts(node: yaml.Node, name: str) -> Iterator[tuple[str, str]]:
    """Yield names and values of variables; a value may have variables of the environment in it."""
    where = f"{name}, line {node.start_mark.line + 1}"
    if not isinstance(node, yaml.MappingNode):
        raise JobError(f"{where}: {VARIABLES}: expected names and values, such as {{year: 2023}}", key=VARIABLES)
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        place, key = Place(f"{name}, line {line}", line), f"{VARIABLES}.{key_node.value}"
        if not isinstance(value_node, yaml.ScalarNode) or not _NAME.fullmatch(str(key_node.value)):
            message = f"{place.where}: {key}: a variable has a name of letters, digits and _, and a text or number"
            raise JobError(message, key=key, line=line)
        yield key_node.value, _filled_in(value_node.value, place, key, {})


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


def _syntax_error(name: str, error: yaml.YAMLError) -> JobError:
    problem = str(getattr(error, "problem", None) or getattr(error, "reason", None) or error)
    start = getattr(error, "context_mark", None)
    mark = getattr(error, "problem_mark", None) or start
    if start is not None and getattr(error, "context", None):
        problem += f", {error.context} that starts on line {start.line + 1}"  # type: ignore[attr-defined] # a MarkedYAMLError
    where = name if mark is None else f"{name}, line {mark.line + 1}, column {mark.column + 1}"
    return JobError(f"{where}: not valid YAML: {problem}", key=None, line=None if mark is None else mark.line + 1)


def shown(value: Any) -> str:
    """Return `value` short enough for one line of a message."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def dotted(keys: Keys) -> str:
    """Return keys as messages and the command line write them."""
    return ".".join(str(key) for key in keys)
