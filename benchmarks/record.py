"""What users see and get, as one JSON file: before and after a change of structure they are the same.

Names with their signatures, the schema of jobs, the help of every command, the service's OpenAPI, the types of errors, and
sha256 of what a demo season becomes (COG in every compression, Zarr, STAC, thumbnail) for windows of 256 and 1024 pixels,
in threads and on one and two workers.

    python benchmarks/record.py before.json
    python benchmarks/record.py after.json && diff before.json after.json
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import s2composite as s2c
from s2composite.demo import make_items, make_scenes

COMMANDS = [
    "",
    "demo",
    "init",
    "plan",
    "run",
    "resume",
    "retry",
    "report",
    "schema",
    "scenes",
    "check",
    "zonal",
    "service",
    "dispatch",
]


def shown(*command):
    """What a command prints, whatever it ends with."""
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
    program = [str(Path(sys.executable).with_name("s2composite")), *filter(None, command)]
    return subprocess.run(program, capture_output=True, text=True, check=False, env=environment).stdout.splitlines()


def signatures():
    """Public names, and the methods of what they are, with what they take."""
    out = {}
    for name in sorted(s2c.__all__):
        value = getattr(s2c, name)
        members = {name: value}
        if inspect.isclass(value):
            members |= {f"{name}.{m}": getattr(value, m) for m in dir(value) if not m.startswith("_")}
        for called, member in members.items():
            try:
                out[called] = str(inspect.signature(member))
            except (TypeError, ValueError):
                out[called] = type(member).__name__
    return out


def errors():
    """Types of errors and what they are kinds of."""
    module = sys.modules[s2c.S2CompositeError.__module__]
    found = {n: v for n, v in vars(module).items() if inspect.isclass(v) and issubclass(v, s2c.S2CompositeError)}
    return {name: [base.__name__ for base in value.__bases__] for name, value in sorted(found.items())}


def openapi(directory):
    """The service's description of itself."""
    from s2composite.service.app import create_app
    from s2composite.service.settings import load_settings

    return create_app(
        load_settings({"state": str(directory), "read": ["gs://bucket/"], "write": ["gs://bucket/out/"]}), "x" * 40
    ).openapi()


def digest(path):
    """The sha256 of a file, or of all files of a directory with their names."""
    path, sums = Path(path), hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            sums.update(file.relative_to(path.parent).as_posix().encode() + file.read_bytes())
    return sums.hexdigest()


def products(source, directory, chunks, client):
    """Digests of everything that a composite is written as."""
    out = {}
    where = Path(directory) / f"{chunks}-{client}"
    where.mkdir()
    cube = s2c.open_cube(source, chunks=chunks)
    comp = s2c.composite(cube)
    for compress in ("deflate", "zstd", "lzw", "lzma", "webp", "jpeg", "none"):
        try:
            comp.to_raster(str(where / f"{compress}.tif"), compress=compress)
        except s2c.S2CompositeError as error:
            out[compress] = str(error).replace(str(where), "")
        else:
            out[compress] = {path.name: digest(path) for path in sorted(where.glob(f"{compress}*"))}
    months = s2c.composite(cube, "median", period="month")
    months.to_zarr(str(where / "months.zarr"))
    out["zarr"] = digest(where / "months.zarr")
    s2c.composite(cube, "geomedian", deviations=True).to_raster(str(where / "geomedian.tif"))
    out["geomedian"] = {path.name: digest(path) for path in sorted(where.glob("geomedian*"))}
    comp.to_stac(str(where / "item.json"))
    out["stac"] = {path.name: digest(path) for path in sorted(where.glob("item*")) if path.suffix != ".json"}
    return out


def main():
    recorded = {
        "signatures": signatures(), "errors": errors(), "schema": shown("schema"),
        "help": {command: shown(command, "--help") for command in COMMANDS},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as directory:
        recorded["openapi"] = openapi(Path(directory, "state"))
        source = str(Path(directory, "scenes"))
        make_scenes(source, scenes=8, size=1500, compress="deflate", seed=3)
        recorded["scenes"] = digest(source)
        make_items(source, str(Path(directory, "items")))
        for chunks in (256, 1024):
            recorded[f"threads, chunks {chunks}"] = products(source, directory, chunks, "threads")
            for workers in (1, 2):
                with s2c.connect("local", workers=workers, threads=1, dashboard=":0", announce=False):
                    recorded[f"{workers} workers, chunks {chunks}"] = products(source, directory, chunks, workers)
    Path(sys.argv[1]).write_text(json.dumps(recorded, indent=1, sort_keys=True, default=str) + "\n")


if __name__ == "__main__":
    main()
