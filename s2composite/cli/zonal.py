"""Zonal: a table of a raster's zones."""

from __future__ import annotations

from typing import Annotated

import typer

from s2composite.cli.words import plural

# Commands import what they need when they run (PLC0415): the libraries behind them take two seconds, --help must not.
# ruff: noqa: PLC0415

__all__ = ["zonal"]


def zonal(
    raster: Annotated[str, typer.Argument(metavar="RASTER", help="A composite, or any raster that GDAL reads.")],
    zones: Annotated[str, typer.Argument(metavar="ZONES", help="Polygons: GeoJSON, GeoPackage, GeoParquet ...")],
    table: Annotated[str, typer.Argument(metavar="TABLE.CSV", help="Where the table goes; .csv or .parquet.")],
    *,
    stats: Annotated[
        str, typer.Option(help="Also sum, median, any percentile as p10, fraction (of each class).")
    ] = "min,max,mean,stdev,skew,count",
    name: Annotated[str | None, typer.Option(help="Column that names the zones; default: they are numbered.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a table that exists.")] = False,
) -> None:
    """Measure a raster over polygons, with the share of each pixel that a polygon covers."""
    from s2composite.analysis.zonal import write_zonal_stats, zonal_stats
    from s2composite.writing.targets import target_of

    target_of(table, overwrite=overwrite)  # before the work
    found = zonal_stats(raster, zones, stats.split(","), name=name)
    typer.echo(f"{plural(len(found), 'row')}: {write_zonal_stats(found, table, overwrite=overwrite)}")
