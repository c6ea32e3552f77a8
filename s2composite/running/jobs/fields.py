"""Fields: the types of values in files of jobs and clusters, with what is checked of them."""

from __future__ import annotations

import os
import re
from typing import Annotated, Any

from dask.utils import parse_bytes
from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer

from s2composite.running.jobs.document import Expected

__all__ = [
    "WHOLE",
    "AsList",
    "Count",
    "Credentials",
    "Dashboard",
    "Environment",
    "FilePath",
    "Finite",
    "Memory",
    "Positive",
    "SomeTexts",
    "Text",
    "Texts",
    "Variable",
]


def _home(path: str) -> str:
    """Return a path with ``~`` written out, a URL as it is."""
    return path if "://" in path else os.path.expanduser(path)  # noqa: PTH111 - Path drops a trailing slash


def _text(value: Any) -> Any:
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def _some(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty; give it a value or leave the key out")
    return value


def _memory(text: str) -> str:
    try:
        size = parse_bytes(text)
    except ValueError:
        raise ValueError(f"expected memory with its unit, such as '4GB', got {text!r}") from None
    if size < 100_000_000:
        raise ValueError(
            f"expected memory with its unit, such as '4GB', got {text!r}, which is {size} bytes: too little"
        )
    return text


def _number(value: Any) -> Any:
    """Return ``"1e-4"`` as a number: one in YAML 1.2, and text in YAML 1.1, where it would need a point."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


_EXPONENT = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+")

Text = Annotated[str, BeforeValidator(_text), AfterValidator(_some)]
FilePath = Annotated[Text, AfterValidator(_home)]
Memory = Annotated[str, AfterValidator(_memory)]
Finite = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Positive = Annotated[Finite, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
WHOLE = Expected("a whole number from 1")

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""The name of an environment variable."""

SECRET = re.compile(r"SECRET|TOKEN|PASSW|PASSPHRASE|CONNECTION_STRING|ACCESS_KEY$|ACCOUNT_KEY|API_KEY|(^|_)SAS($|_)")
"""Names of environment variables whose values are secrets."""


def _environment_text(value: Any) -> Any:
    """Return a number as the text that a process's environment holds; YAML's ``yes`` was taken for a truth value."""
    if isinstance(value, bool):
        raise ValueError("is read as true or false; put the value in quotes, such as 'YES'")  # noqa: TRY004 - pydantic
    return str(value) if isinstance(value, int | float) else value


def _no_secrets(environment: dict[str, str]) -> dict[str, str]:
    """Refuse names whose values are secrets: options are printed, logged and kept beside results."""
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
AsList = PlainSerializer(list)
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
