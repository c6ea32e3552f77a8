"""What was written, read back by every reader there is: identical to the computed array, overviews too."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import odc.geo.xr
import odc.stac
import pystac
import pytest
import rasterio
import rioxarray
import xarray as xr
from rasterio.vrt import WarpedVRT
from rasterio.windows import Window

from s2composite.writing.cog import write_raster
from s2composite.writing.stac import write_stac
from s2composite.writing.zarr import write_zarr
from support.gdal_cli import needs_gdal, translated
from support.writing_helpers import plain_overview, three_layers


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Three layers, written window by window with an item, and their arrays by name."""
    folder = tmp_path_factory.mktemp("read-back")
    dataset, values, count, source = three_layers((600, 520), 128)
    write_stac(dataset, folder / "median.json", blocksize=64)
    arrays = {"composite": values, "count": count[None], "source": source[None]}
    paths = {name: folder / ("median.tif" if name == "composite" else f"median_{name}.tif") for name in arrays}
    return dataset, arrays, paths, folder / "median.json"


def overviews(values, method, nodata, levels):
    out = []
    for _ in range(levels):
        values = plain_overview(values, method, nodata)
        out.append(values)
    return out


@pytest.fixture(scope="module")
def smaller(written):
    """Overviews of each layer, made in plain Python."""
    dataset, arrays, _, _ = written
    return {
        name: overviews(a, dataset[name].attrs["overviews"], dataset[name].attrs.get("nodata"), 3)
        for name, a in arrays.items()
    }


LAYERS = pytest.mark.parametrize("name", ["composite", "count", "source"])


@LAYERS
def test_rasterio_whole_and_by_windows(written, name):
    _, arrays, paths, _ = written
    with rasterio.open(paths[name]) as source:
        assert np.array_equal(source.read(), arrays[name])
        for window in (
            Window(0, 0, 1, 1),
            Window(120, 120, 20, 20),
            Window(519, 599, 1, 1),
            Window(50, 300, 250, 160),
        ):
            assert np.array_equal(source.read(window=window), arrays[name][(slice(None), *window.toslices())])


@LAYERS
def test_rioxarray_and_xarray_lazily(written, name):
    dataset, arrays, paths, _ = written
    with rioxarray.open_rasterio(paths[name], chunks={"x": 200, "y": 333}) as opened:
        assert np.array_equal(opened.values, arrays[name])
        assert opened.rio.transform() == dataset[name].odc.geobox.transform
    with xr.open_dataset(paths[name], engine="rasterio", mask_and_scale=False) as opened:
        assert np.array_equal(opened["band_data"].values, arrays[name])


@LAYERS
def test_odc_geo_knows_the_grid_and_reprojects_the_same(written, name):
    dataset, arrays, paths, _ = written
    with rioxarray.open_rasterio(paths[name]) as opened:
        assert opened.odc.geobox == dataset[name].odc.geobox
        target = opened.odc.geobox.zoom_out(3)
        memory = opened.copy(data=arrays[name])
        assert np.array_equal(opened.odc.reproject(target).values, memory.odc.reproject(target).values)


def test_odc_stac_loads_the_item(written):
    dataset, arrays, _, item = written
    loaded = odc.stac.load(
        [pystac.Item.from_file(str(item))], bands=["count", "source"], geobox=dataset["count"].odc.geobox
    )
    for name in ("count", "source"):
        assert np.array_equal(loaded[name].values, arrays[name])
        assert loaded[name].odc.geobox == dataset[name].odc.geobox


@LAYERS
@pytest.mark.parametrize("level", [0, 1, 2])
def test_overviews_as_qgis_reads_them(written, smaller, name, level):
    """A map canvas asks for fewer pixels than there are; GDAL answers from the overview, or one is opened by number."""
    _, _, paths, _ = written
    want = smaller[name][level]
    with rasterio.open(paths[name], overview_level=level) as source:
        assert np.array_equal(source.read(), want)
    with rasterio.open(paths[name]) as source:
        assert source.overviews(1) == [2, 4, 8, 16]
        assert np.array_equal(source.read(out_shape=want.shape), want)
    with rioxarray.open_rasterio(paths[name], overview_level=level) as opened:
        assert np.array_equal(opened.values, want)


@LAYERS
def test_a_warp_at_the_same_grid_changes_nothing(written, name):
    _, arrays, paths, _ = written
    with (
        rasterio.open(paths[name]) as source,
        WarpedVRT(source, crs=source.crs, transform=source.transform, width=source.width, height=source.height) as vrt,
    ):
        assert np.array_equal(vrt.read(), arrays[name])


def test_the_rio_command(written, tmp_path):
    _, arrays, paths, _ = written
    name = "composite"
    rio = Path(sys.executable).with_name("rio")
    info = json.loads(subprocess.run([rio, "info", paths[name]], capture_output=True, check=True).stdout)
    assert info["crs"] == "EPSG:32631"
    assert info["shape"] == [600, 520]
    subprocess.run(
        [rio, "clip", paths[name], tmp_path / "clip.tif", "--like", paths[name]], capture_output=True, check=True
    )
    with rasterio.open(tmp_path / "clip.tif") as source:
        assert np.array_equal(source.read(), arrays[name])


@needs_gdal
@LAYERS
def test_gdals_command_line(written, smaller, name):
    _, arrays, paths, _ = written
    assert np.array_equal(translated(paths[name], arrays[name].dtype), arrays[name].ravel())
    for level, want in enumerate(smaller[name]):
        found = translated(paths[name], arrays[name].dtype, "-oo", f"OVERVIEW_LEVEL={level}")
        assert np.array_equal(found, want.ravel())
    info = json.loads(subprocess.run(["gdalinfo", "-json", paths[name]], capture_output=True, check=True).stdout)
    assert info["metadata"]["IMAGE_STRUCTURE"]["LAYOUT"] == "COG"
    assert info["bands"][0]["description"] == ("red" if name == "composite" else name)
    checks = subprocess.run(["gdalinfo", "-checksum", paths[name]], capture_output=True, check=True, text=True)
    assert "ERROR" not in checks.stderr


@pytest.mark.parametrize("pyramid", [False, True])
def test_zarr_by_xarray_rioxarray_and_odc_geo(written, smaller, tmp_path, pyramid):
    dataset, arrays, _, _ = written
    store = write_zarr(dataset, tmp_path / "out.zarr", chunk=64, pyramid=pyramid)
    with xr.open_zarr(store, group="0" if pyramid else None, mask_and_scale=False, decode_coords="all") as opened:
        for name, values in arrays.items():
            assert np.array_equal(opened[name].values, values.reshape(dataset[name].shape))
            assert opened[name].odc.geobox == dataset[name].odc.geobox
            assert opened[name].rio.crs.to_epsg() == 32631
            assert opened[name].rio.transform() == dataset[name].odc.geobox.transform
    if pyramid:
        with xr.open_zarr(store, group="1", mask_and_scale=False) as half:
            for name in arrays:
                assert np.array_equal(half[name].values, smaller[name][0].reshape(half[name].shape))


def test_the_same_after_a_round_trip(written, tmp_path):
    """What rioxarray reads can be written again, and is the same file but for facts that rioxarray does not keep."""
    _, arrays, paths, _ = written
    with rioxarray.open_rasterio(paths["composite"]) as opened:
        (again,) = write_raster(opened.to_dataset(name="composite"), tmp_path / "again.tif", blocksize=128)
    with rasterio.open(again) as source:
        assert np.array_equal(source.read(), arrays["composite"])
        assert source.nodata == 0
