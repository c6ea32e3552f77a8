"""List the scenes of a source, and mark those that differ."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from s2composite.errors import S2CompositeError, plural
from s2composite.scenes.model import Asset, Scene

# Commands import what they need when they run (PLC0415): importing the libraries takes two seconds, --help must not.
# ruff: noqa: PLC0415

__all__ = ["scenes"]

# Columns of the table of scenes; the second are properties that all scenes of a stack should share.
SHOWN = ("time", "granule", "id", "asset", "size", "bands", "blocks", "compression", "dtype", "valid by")
COMPARED = ("granule", "bands", "size", "blocks", "compression", "dtype", "valid by", "crs", "grid")


def scenes(
    source: Annotated[
        list[str], typer.Argument(help="Paths, directories, patterns or URL prefixes (gs://, s3://, https://).")
    ],
    *,
    datetime: Annotated[str | None, typer.Option(help="Only these dates: 2023-06, 2023-06-01/2023-08-31.")] = None,
    pattern: Annotated[str | None, typer.Option(help="Regular expression with named groups for unusual names.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the scenes of a source; those that differ from the majority are marked."""
    from s2composite.scenes.find import find_scenes

    found = find_scenes(source if len(source) > 1 else source[0], pattern=pattern, datetime=datetime)
    files = [(scene, asset) for scene in found for asset in scene.assets]
    with ThreadPoolExecutor(32) as pool:
        rows = _flagged(list(pool.map(lambda file: _described(*file), files)))
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    several = len({row["asset"] for row in rows}) > 1
    columns = [column for column in SHOWN if several or column != "asset"]
    table = Table(*columns, "differs in", box=None, header_style="bold", pad_edge=False)
    for row in rows:
        cells = []
        for column in columns:
            value = "" if row.get(column) is None else row[column]
            text = " x ".join(map(str, value)) if isinstance(value, list) else str(value)
            cells.append(Text(text, "bold red" if column in row["odd"] else ""))
        table.add_row(*cells, Text(row.get("error") or ", ".join(row["odd"]), "bold red"))
    odd = sum(bool(row["odd"]) for row in rows)
    # If the output is not a terminal, lines are not wrapped, so that grep finds whole names.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    console.print(table)
    counts = f"{plural(len(found), 'scene')}, {plural(len(rows), 'file')}"
    console.print(f"{counts}, {odd or 'none'} unlike the majority")


def _described(scene: Scene, asset: Asset) -> dict[str, Any]:
    """Return the metadata from the name and header of one file, or why it cannot be read."""
    from s2composite.geotiff.header import read_header
    from s2composite.storage.files import display

    named = {
        "time": scene.time.isoformat().replace("+00:00", "Z"),
        "granule": scene.granule,
        "id": scene.id,
        "orbit": scene.orbit,
        "baseline": scene.baseline,
        "asset": asset.name,
        "href": display(asset.href),  # a signed URL without its signature
    }
    try:
        header = read_header(asset.href)
    except S2CompositeError as error:
        return {**named, "error": str(error)}
    grid = header.geobox
    return {
        **named,
        "bands": header.bands,
        "size": list(grid.shape),
        "blocks": list(header.block),
        "compression": header.coding.compression,
        "dtype": str(header.dtype),
        "valid by": header.valid_by or "—",
        "crs": str(grid.crs),
        "grid": list(grid.transform)[:6],
        "engine": header.undecodable or "tiles",
    }


def _flagged(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each row the columns in which it differs from most files of the same asset, as ``odd``.

    >>> [row["odd"] for row in _flagged([{"asset": "TCI", "dtype": d} for d in ("uint8", "uint8", "int16")])]
    [[], [], ['dtype']]
    """
    usual = {
        (asset, column): Counter(str(row[column]) for row in rows if row["asset"] == asset and column in row)
        for asset in {row["asset"] for row in rows}
        for column in COMPARED
    }

    def differs(row: Mapping[str, Any], column: str) -> bool:
        return column in row and str(row[column]) != usual[row["asset"], column].most_common(1)[0][0]

    return [{**row, "odd": ["error"] if "error" in row else [c for c in COMPARED if differs(row, c)]} for row in rows]
