"""Template: a commented job file, made from the job's own model, so that it cannot fall behind."""

from __future__ import annotations

import textwrap
from typing import Any

import yaml
from pydantic.fields import FieldInfo

from s2composite.running.jobs.job import Job

__all__ = ["job_template"]

_EXAMPLES = {"source": "scenes/", "output": "median.tif"}
_WIDTH = 100
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
    return "\n".join([_HEAD, *(_entry(name, field) for name, field in Job.model_fields.items())]) + "\n"


def _entry(name: str, field: FieldInfo) -> str:
    meaning = textwrap.wrap(
        " ".join((field.description or "").replace("``", "").replace("None:", "null:").split()), _WIDTH
    )
    lines = ["", *(f"# {line}" for line in meaning)]
    if field.is_required():
        return "\n".join([*lines, f"{name}: {_EXAMPLES[name]}"])
    return "\n".join([*lines, f"# {name}: {_value(field.default)}"])


def _value(default: Any) -> str:
    plain = default.model_dump(exclude_none=True) if hasattr(default, "model_dump") else default
    return yaml.safe_dump(plain, default_flow_style=True, width=1000).strip().removesuffix("...").strip()
