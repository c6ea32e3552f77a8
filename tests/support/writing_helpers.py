"""Composites for tests of writing, and the plainest possible overviews to compare with."""

from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import dask.array as da
import numpy as np
import odc.geo.xr
import pytest
import rasterio
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

import s2composite.cube.windows

UTM = Affine(10, 0, 300000, 0, -10, 4900020)


def assert_same_files(one, other):
    """Two directories hold the same GeoTIFFs, byte for byte; if not, say which tags, pixels and bytes differ."""
    one, other = Path(one), Path(other)
    names = sorted(path.name for path in one.glob("*.tif"))
    assert names == sorted(path.name for path in other.glob("*.tif"))
    for name in names:
        left, right = (one / name).read_bytes(), (other / name).read_bytes()
        if left != right:
            raise AssertionError(f"{name}: {'; '.join(_differences(one / name, other / name, left, right))}")


def _differences(one, other, left, right):
    """Yield what differs between two files, whose bytes are given too."""
    with rasterio.open(one) as first, rasterio.open(other) as second:
        for band in range(first.count + 1):
            if first.tags(band) != second.tags(band):
                yield f"tags of band {band}: {first.tags(band)} and {second.tags(band)}"
        overviews = range(len(first.overviews(1)))
    for level in (None, *overviews):
        options = {} if level is None else {"overview_level": level}
        with rasterio.open(one, **options) as first, rasterio.open(other, **options) as second:
            a, b = first.read(), second.read()
        places = np.argwhere((a != b).any(0))
        if len(places):
            y, x = places[0]
            yield (
                f"overview {level}: {len(places)} pixels from {places.min(0)} to {places.max(0)}, "
                f"the first {a[:, y, x]} and {b[:, y, x]}"
            )
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    yield f"{len(left)} and {len(right)} bytes, which part at {at}"


def pixels(shape, dtype="uint8", seed=0, nodata=0):
    """Return a textured picture with a corner and some speckles of nodata; ``(b, y, x)`` or ``(y, x)``."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    low, high = (1, 250) if dtype.itemsize == 1 else (1, 30_000)
    values = rng.integers(low, high if dtype.kind != "i" or dtype.itemsize > 1 else 120, shape).astype(dtype)
    if dtype.kind == "f":
        values /= dtype.type(7)
    if nodata is not None:
        values[..., : shape[-2] // 3, : shape[-1] // 4] = nodata
        values[..., rng.random(shape[-2:]) < 0.1] = nodata
    return values


@contextmanager
def composed_windows():
    """Give the list of windows that are composed in threads of this process while the block runs."""
    whole, windows = s2composite.cube.windows.compose_window, []

    def compose_window(stack, recipe, window, *args):
        windows.append(window)
        return whole(stack, recipe, window, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(s2composite.cube.windows, "compose_window", compose_window)
        yield windows


def composite_of(values, chunks=None, crs="EPSG:32631", transform=UTM, **attrs):
    """Return a dataset with the one layer ``composite``; lazy where `chunks` says how."""
    return dataset_of({"composite": (values, {"nodata": 0, "overviews": "average"} | attrs)}, chunks, crs, transform)


def dataset_of(layers, chunks=None, crs="EPSG:32631", transform=UTM):
    """Return a dataset of layers ``{name: (values, attrs)}``."""
    first = next(iter(layers.values()))[0]
    coords = {}
    if transform is not None:
        coords = dict(odc.geo.xr.xr_coords(GeoBox(first.shape[-2:], transform, crs), dims=("y", "x")))
    bands = max((values.shape[0] for values, _ in layers.values() if values.ndim == 3), default=0)
    names = {3: ["red", "green", "blue"]}.get(bands, [f"B{i:02d}" for i in range(bands)])
    if bands:
        coords["band"] = names
    coords["scene"] = ("scene", ["S2A_31TCJ_20230601", "S2B_31TCJ_20230606"])
    coords["scene_time"] = ("scene", np.array(["2023-06-01T10:46:29", "2023-06-06T10:46:31"], "datetime64[ns]"))
    variables = {
        name: (
            ("band", "y", "x")[-values.ndim :],
            lazy(values, chunks),
            {k: v for k, v in attrs.items() if v is not None},
        )
        for name, (values, attrs) in layers.items()
    }
    facts = {"reducer": "luminance_median", "rules": "Nodata(), Saturated()", "software": "s2composite 0.1.0"}
    return xr.Dataset(variables, coords, facts)


def lazy(values, chunks):
    if chunks is None:
        return values
    return da.from_array(values, chunks=((-1,) * (values.ndim - 2)) + tuple(np.broadcast_to(chunks, 2).tolist()))


def three_layers(shape=(900, 700), chunks=256, seed=0):
    """Return a composite with its count and source, as composite() makes them, and their arrays."""
    values = pixels((3, *shape), seed=seed)
    valid = (values != 0).all(axis=0)
    count = np.where(valid, values[0] % 30 + 1, 0).astype(np.uint16)
    source = np.where(valid, (values[1] % 2).astype(np.int16), np.int16(-1))
    layers = {
        "composite": (values, {"nodata": 0, "overviews": "average", "long_name": "median"}),
        "count": (count, {"overviews": "average", "long_name": "valid observations"}),
        "source": (source, {"nodata": -1, "overviews": "nearest", "long_name": "index of the scene"}),
    }
    return dataset_of(layers, chunks), values, count, source


def periods_of_layers(periods=("2023-01", "2023-02", "2023-03"), shape=(300, 270), chunks=128, seed=0):
    """Return a dataset of layers with the axis of periods, as composite(period=) makes them, and their arrays."""
    n, arrays = len(periods), {}
    for i in range(n):
        _, *one = three_layers(shape, None, seed + i)
        for name, values in zip(("composite", "count", "source"), one, strict=True):
            arrays.setdefault(name, []).append(values)
    arrays = {name: np.stack(values) for name, values in arrays.items()}
    dataset = three_layers(shape, None)[0]
    dataset = xr.Dataset(coords=dataset.coords, attrs=dataset.attrs).assign(
        {
            name: (("time", *dataset[name].dims), lazy(arrays[name], chunks), dataset[name].attrs)
            for name in ("composite", "count", "source")
        }
    )
    starts = np.array("2023-01", "datetime64[M]") + np.arange(n + 1)
    bounds = np.stack([starts[:-1], starts[1:]], axis=1).astype("datetime64[ns]")
    dataset = dataset.assign_coords(
        time=("time", bounds[:, 0], {"bounds": "time_bounds"}),
        time_bounds=(("time", "bnds"), bounds),
        period=("time", list(periods)),
    )
    return dataset, arrays


def plain_overview(values, method, nodata):
    """Halve ``(b, y, x)`` with loops in plain Python."""
    b, height, width = values.shape
    out = np.empty((b, (height + 1) // 2, (width + 1) // 2), values.dtype)
    for i, y, x in np.ndindex(out.shape):
        block = values[i, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel()
        out[i, y, x] = _plain_cell(block, method, nodata)
    return out


def _plain_cell(block, method, nodata):
    if method == "nearest":
        return block[0]
    there = [v for v in block.tolist() if not np.isnan(v) and v != nodata]
    if not there:
        return np.nan if nodata is None else nodata
    if method == "mode":
        most = max(Counter(there).values())
        return next(v for v in there if there.count(v) == most)
    mean = sum(there) / len(there)
    if block.dtype.kind == "f":
        return mean
    # A mean that is nodata by coincidence must not become "no value": it moves by one.
    return int(np.floor(mean + 0.5)) + (int(np.floor(mean + 0.5)) == nodata)
