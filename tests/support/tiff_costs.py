"""What it costs to open files and to read some of their pixels, file by file, in a process of its own.

``python tiff_costs.py DIRECTORY`` prints a line of JSON for each file, by name: how it ended, seconds of processor time,
and MiB by which the process has grown since it began. A file that kills the process has no line.
"""

import json
import pickle
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

SIDE, BANDS = 64, 8
"""At most so many pixels on a side, and bands, are read of each level."""

LIMIT = 4 << 30
"""Bytes of addresses: what asks for more fails, and must say so, and spares the machine."""


@dataclass(frozen=True)
class Cost:
    """What a file costs."""

    name: str
    ended: str
    """``"read"``, ``"refused: ..."`` by an error of s2composite, or the name of a foreign exception."""
    seconds: float
    grown: float


def costs_of(directory):
    """Return the cost of each file in a directory; an AssertionError names the one that kills the process."""
    command = [sys.executable, "-W", "ignore", __file__, directory]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=250)
    costs = [Cost(**json.loads(line)) for line in done.stdout.splitlines()]
    names = sorted(path.name for path in Path(directory).glob("*.tif"))
    assert done.returncode == 0, f"{names[len(costs)]}: exit {done.returncode}, {done.stderr[-1000:]}"
    assert [cost.name for cost in costs] == names
    return costs


def _read(path):
    from s2composite.geotiff.header import read_header
    from s2composite.reading.tiles import read_tiles
    from s2composite.reading.warp import read_level

    header = pickle.loads(pickle.dumps(read_header(path)))
    for raster in [header, *([header.mask] if header.mask else [])]:
        bands = tuple(range(min(raster.bands, BANDS)))
        for level, each in enumerate(raster.levels):
            window = tuple(slice(0, min(side, SIDE)) for side in each.shape)
            out = np.zeros((len(bands), *(part.stop for part in window)), raster.dtype)
            if header.undecodable:
                read_level(raster, bands, level, window, out)
            else:
                read_tiles(raster, level, window, bands, out)


def _outcome(path):
    from s2composite.errors import S2CompositeError

    try:
        _read(path)
    except S2CompositeError as error:
        return f"refused: {error}"
    except Exception as error:  # noqa: BLE001 - which is what is asked
        return f"{type(error).__module__}.{type(error).__name__}: {error}"
    return "read"


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(directory):
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    paths = sorted(map(str, Path(directory).glob("*.tif")))
    for path in paths[:3]:  # imports, and what GDAL sets up once
        _outcome(path)
    before = _peak()
    for path in paths:
        began = time.process_time()
        ended = _outcome(path)
        cost = Cost(Path(path).name, ended, time.process_time() - began, _peak() - before)
        sys.stdout.write(json.dumps(vars(cost)) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
