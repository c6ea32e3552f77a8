"""Tables of zonal statistics as files."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Mapping

import pandas as pd

from s2composite.errors import MissingDependencyError, ParameterError
from s2composite.writing.targets import put_small, target_of

__all__ = ["write_zonal_stats"]

_COLUMNS_OF_CSV = {"stdev": "stddev"}
"""What a CSV calls a statistic: ``min,max,mean,stddev,skew,count``, as tif_stats does."""


def write_zonal_stats(table: pd.DataFrame, path: str | os.PathLike[str], *, overwrite: bool = False) -> str:
    """Write a table of `zonal_stats` as CSV or Parquet.

    Parameters
    ----------
    table
        From `zonal_stats`.
    path
        Local path or URL that ends in ``.csv`` or ``.parquet``. In a CSV the standard deviation is called ``stddev``,
        so that ``min,max,mean,stddev,skew,count`` are the columns of tif_stats.
    overwrite
        Replace an existing file.

    Returns
    -------
    str
        The file written.

    Raises
    ------
    ParameterError
        The path ends in something else.
    MissingDependencyError
        Parquet needs pyarrow.
    WriteError
        The file exists or cannot be written.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"zone": ["a"], "band": ["red"], "mean": [3.5], "stdev": [1.0]})
    >>> with open(write_zonal_stats(table, "zones.csv", overwrite=True)) as file:
    ...     print(file.read())
    zone,band,mean,stddev
    a,red,3.5,1.0
    <BLANKLINE>
    """
    kind = os.fspath(path).rpartition(".")[2].lower()
    if kind not in _ENCODERS:
        raise ParameterError(f"{os.fspath(path)}: a table is a {' or '.join(f'.{known}' for known in _ENCODERS)} file")
    target = target_of(os.fspath(path), overwrite=overwrite)
    put_small(_ENCODERS[kind](table), target, overwrite=overwrite)
    return target


def _csv(table: pd.DataFrame) -> bytes:
    return table.rename(columns=_COLUMNS_OF_CSV).to_csv(index=False).encode()


def _parquet(table: pd.DataFrame) -> bytes:
    buffer = io.BytesIO()
    try:
        table.to_parquet(buffer, index=False, engine="pyarrow")
    except ImportError as error:
        raise MissingDependencyError(f"Parquet needs pyarrow; pip install 's2composite[zones]': {error}") from error
    return buffer.getvalue()


_ENCODERS: Mapping[str, Callable[[pd.DataFrame], bytes]] = {"csv": _csv, "parquet": _parquet}
