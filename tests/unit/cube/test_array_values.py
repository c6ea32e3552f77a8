"""The nodata value of our arrays, of those of other libraries, and of arrays derived with xarray.

Expected values are xarray's own of arrays that hold NaN where nothing was observed.
"""

import dask
import geopandas as gpd
import numpy as np
import odc.stac
import pandas as pd
import pystac
import pytest
import rasterio
import rioxarray
import shapely
import stackstac
import xarray as xr

import s2composite as s2c
from s2composite.cube.array_values import missing_value_of
from s2composite.errors import ParameterError
from support.rasters import ORIGIN, write_tif
from support.stac_items import item_of

SIDE, SCENES = 12, 3
GONE, FLAT, DARK = slice(0, 3), slice(3, 6), slice(6, 8)
"""Rows that no scene saw; where the two bands are equal; where they have the number 1000."""

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def _one_thread():
    with dask.config.set(scheduler="synchronous"):
        yield


def numbers(t, nodata=0, dtype="uint16"):
    values = np.full((2, SIDE, SIDE), 1500, dtype)
    values[1, 8:] = 3000 + t
    values[:, DARK] = 1000
    values[:, GONE] = nodata
    return values


def series(folder, **how):
    return [
        write_tif(folder / f"S2A_31TCJ_2023060{t + 1}T105619_x.tif", numbers(t, **how), nodata=how.get("nodata", 0))
        for t in range(SCENES)
    ]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return series(tmp_path_factory.mktemp("values"))


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("items"), []
    for t in range(SCENES):
        assets = {
            key: write_tif(folder / f"{key}{t}.tif", numbers(t)[b], nodata=0) for b, key in enumerate(("red", "nir"))
        }
        item = item_of(f"S2A_31TCJ_2023060{t + 1}", f"2023-06-0{t + 1}T10:46:29Z", assets)
        item["properties"]["proj:code"] = "EPSG:32631"
        item["stac_extensions"] = ["https://stac-extensions.github.io/projection/v2.0.0/schema.json"]
        made.append(item)
    return made


def truth():
    """The observations as floats with NaN, ``(time, band, y, x)``."""
    values = np.stack([numbers(t) for t in range(SCENES)]).astype("float64")
    return xr.DataArray(np.where(values == 0, np.nan, values), dims=("time", "band", "y", "x"))


def zones(top, bottom=SIDE):
    box = shapely.box(ORIGIN.c, ORIGIN.f - 10 * bottom, ORIGIN.c + 10 * SIDE, ORIGIN.f - 10 * top)
    return gpd.GeoDataFrame({"id": ["z"]}, geometry=[box], crs=32631)


def same(found, expected):
    """A composite has xarray's median, and counts the values that xarray does not skip."""
    comp = s2c.composite(found, "median").compute()
    np.testing.assert_allclose(comp["composite"].values, expected.median("time").values, rtol=1e-6)
    np.testing.assert_array_equal(comp["count"].values, np.isfinite(expected).all("band").sum("time").values)
    assert np.isnan(comp["composite"].attrs["nodata"])
    return comp


# --- arrays made from a cube -----------------------------------------------------------------------------------------------

INDEX = {
    "normalised difference": lambda c: (c[:, 1:] - c[:, :1].values) / (c[:, 1:] + c[:, :1].values),
    "difference": lambda c: c[:, 1:] - c[:, :1].values + 0.5 * (c[:, 1:] - c[:, :1].values) / 7,
}
"""Of cubes that hold NaN: 0 is data where both bands are equal."""


@pytest.mark.parametrize("held", ["lazy", "in memory", "persisted", "stored"])
@pytest.mark.parametrize("index", INDEX)
def test_an_index_of_zero_is_data(files, tmp_path, held, index):
    cube = s2c.open_cube(files)
    made = INDEX[index](cube.where(cube != 0).astype("float64"))
    made = {"in memory": made.compute, "persisted": made.persist}.get(held, lambda: made)()
    if held == "stored":
        made.drop_encoding().to_dataset(name="index").to_zarr(tmp_path / "index.zarr")
        made = xr.open_zarr(tmp_path / "index.zarr")["index"]
    comp = same(made, INDEX[index](truth()))
    assert (comp["composite"].values[0, FLAT] == 0).all()
    assert np.isnan(comp["composite"].values[0, GONE]).all()


@pytest.mark.parametrize("compute", [False, True])
def test_reflectance_that_was_harmonised_by_hand(files, compute):
    cube = s2c.open_cube(files)
    made = (cube.where(cube != 0) - 1000) / 10000
    comp = same(made.compute() if compute else made, (truth() - 1000) / 10000)
    assert (comp["composite"].values[0, DARK] == 0).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.astype("float32"),
        lambda c: c.astype("float64") * 2 - 1000,
        lambda c: c.where(c < 3002),
        lambda c: c.where(xr.DataArray(np.arange(SCENES) > 0, dims="time")),
        lambda c: c.isel(time=[1, 0]).astype("float32"),
        lambda c: c.reindex(time=pd.date_range("2023-05-31", periods=4) + pd.Timedelta("10:56:19")),
    ],
)
def test_nodata_is_tracked_through_the_graph_of_a_lazy_cube(files, change):
    """Missing observations are still known if each pixel was calculated from itself, or masked."""
    cube = s2c.open_cube(files)
    observed = (cube.compute() != 0).reindex(time=change(cube).time, fill_value=False)
    same(change(cube), change(cube).compute().astype("float64").where(observed))


@pytest.mark.parametrize("held", ["lazy", "in memory", "persisted"])
@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.where(c != 0),
        lambda c: c.where(c != 0).astype("float64") / 10000,
        lambda c: xr.where(c > 0, c, np.nan, keep_attrs=True),
        lambda c: c.where(c != 0).fillna(0).astype("uint16"),
        lambda c: c.where(c != 0).transpose("x", "y", "band", "time"),
        lambda c: c.where(c != 0).resample(time="2D").median(),
        lambda c: c.where(c != 0).interp(x=c.x[1:-1] + 3.0),
        lambda c: c.resample(time="2D").max(),
        lambda c: c.clip(0, 2000),
        lambda c: xr.concat([c.isel(time=[0]), c.isel(time=[1, 2])], "time"),
        lambda c: xr.concat([c.isel(y=slice(0, 5)), c.isel(y=slice(5, None))], "y"),
    ],
)
def test_masked_cubes_mean_the_same_lazy_in_memory_and_persisted(files, change, held):
    cube = s2c.open_cube(files)
    how = {"in memory": lambda c: c.compute(), "persisted": lambda c: c.persist(), "lazy": lambda c: c}[held]
    made = how(change(cube))
    expected = change(truth().assign_coords(cube.coords).rename("truth"))
    comp = s2c.composite(made, "median").compute()
    expected = expected.transpose("time", "band", "y", "x").where(expected != 0).median("time")
    nodata = comp["composite"].attrs["nodata"]
    found = comp["composite"].astype("float64")
    np.testing.assert_allclose(
        found.where(found != nodata).values, expected.values, rtol=1e-6, atol=0.5 if nodata == 0 else 0
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c / 10000,
        lambda c: (c.astype("float32") - 1000) / 10000,
        lambda c: (c / 10000)[:, ::-1].transpose("y", "x", "time", "band") * 2,
        np.sqrt,
    ],
)
def test_scaled_cubes_are_known_lazy_and_refused_in_memory(files, change):
    """In memory, zeros may have been calculated from nodata, unless there is NaN."""
    cube = s2c.open_cube(files)
    same(change(cube), change(truth()).transpose("time", "band", "y", "x"))
    for held in (change(cube.compute()), change(cube).compute(), change(cube).persist()):
        with pytest.raises(ParameterError, match=r"cannot be determined.*cube\.where\(cube != 0\)"):
            s2c.composite(held, "median")
        said = held.drop_attrs(deep=False)
        assert (s2c.composite(said, "median").compute()["count"] == SCENES).all()


@pytest.mark.parametrize(
    "change",
    [
        lambda c: ((c.astype("float32") - 1500) / 10000).clip(0),
        lambda c: c.astype("float32").diff("band"),
        lambda c: c.compute().clip(1000, 2000),
        lambda c: c.compute() + np.uint16(5),
    ],
)
def test_series_calculated_from_nodata_are_an_error(files, change):
    with pytest.raises(ParameterError, match="cannot be determined"):
        s2c.composite(change(s2c.open_cube(files)), "median")


@pytest.mark.parametrize(
    ("change", "scale"),
    [
        (lambda c: c["composite"] / 10000, 1e-4),
        (lambda c: c["composite"].astype("float32") * 2, 2),
        (lambda c: c["composite"].where(c["count"] > 2), 1),
        (lambda c: c["composite"].where(c["count"] > 2).persist() / 10000, 1e-4),
        (lambda c: c["composite"].where(c["count"] > 2).persist(), 1),
        (lambda c: c["composite"].where(c["count"] > 2).compute() / 10000, 1e-4),
        (lambda c: c["composite"].clip(0, 5000), 1),
    ],
)
def test_layers_that_were_scaled_or_masked(files, change, scale):
    comp = s2c.composite(s2c.open_cube(files), "median")
    expected = truth().median("time")[0].values * scale
    row = s2c.zonal_stats(change(comp).rename("layer"), zones(0), ["mean", "count"], name="id").to_dict("records")[0]
    assert (row["mean"], row["count"]) == pytest.approx((np.nanmean(expected), np.isfinite(expected).sum()), rel=1e-5)


@pytest.mark.parametrize("reduce", ["max", "min"])
@pytest.mark.parametrize("compute", [False, True])
def test_minimum_and_maximum_of_a_cube(files, reduce, compute):
    cube = s2c.open_cube(files)
    made = getattr(cube.compute() if compute else cube, reduce)("time")
    row = s2c.zonal_stats(made, zones(0), ["mean", "count"], name="id").to_dict("records")[0]
    expected = getattr(truth(), reduce)("time")[0].values
    assert (row["mean"], row["count"]) == pytest.approx((np.nanmean(expected), np.isfinite(expected).sum()))


@pytest.mark.parametrize(
    ("change", "nodata"),
    [(lambda c: c.astype("int16") - np.int16(1000), -1000), (lambda c: c + np.uint16(7), 7), (lambda c: c, 0)],
)
def test_shifted_integers_do_not_count_nodata(files, change, nodata):
    comp = s2c.composite(change(s2c.open_cube(files)), "median").compute()
    assert comp["composite"].attrs["nodata"] == nodata
    assert (comp["composite"].values[:, GONE] == nodata).all()
    np.testing.assert_array_equal(comp["count"].values, np.repeat([0, SCENES], [3, 9])[:, None] * np.ones(SIDE, int))


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c.compute().astype("int16") - np.int16(1000),
        lambda c: c.astype("int16") // 2000,
        lambda c: c.astype("int16") - c.astype("int16").shift(time=1, fill_value=0),
        lambda c: c.compute().astype("float32"),
        lambda c: c.astype("float32").persist(),
    ],
)
def test_unknown_nodata_is_an_error_unless_a_rule_sets_it(files, change):
    made = change(s2c.open_cube(files))
    with pytest.raises(ParameterError, match=r"was derived from one with nodata value 0; .*cube\.where\(cube != 0\)"):
        s2c.composite(made, "median")
    with pytest.raises(ParameterError, match="cannot be determined"):
        s2c.valid_share(made)
    everything = s2c.composite(made, "median", valid=()).compute()
    np.testing.assert_array_equal(everything["composite"].values, made.median("time").values.astype(made.dtype))
    assert (everything["count"] == SCENES).all()
    flat = s2c.composite(made, "median", valid=s2c.Nodata(500)).compute()
    np.testing.assert_array_equal(flat["count"].values, (made != 500).all("band").sum("time").values)
    said = made.drop_attrs(deep=False).assign_attrs(_FillValue=-3)
    assert s2c.composite(said, "median").dataset["composite"].attrs["nodata"] == -3


def test_results_of_comparisons_have_no_nodata(files):
    comp = s2c.composite(s2c.open_cube(files), "median")
    bright = comp["composite"].sel(band=comp["composite"]["band"][1]) > 2000
    for one in (
        bright,
        bright.compute(),
        bright.astype("uint8"),
        bright.astype("float32"),
        bright.compute().astype("u1"),
    ):
        (row,) = s2c.zonal_stats(one, zones(3), ["mean", "count"], name="id").to_dict("records")
        assert (row["mean"], row["count"]) == pytest.approx((4 / 9, 9 * SIDE))


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("compute", [False, True])
def test_shares_of_flags_in_a_series(files, dtype, compute):
    made = (s2c.open_cube(files) > 2000).astype(dtype)
    comp = s2c.composite(made.compute() if compute else made, "mean").compute()
    np.testing.assert_array_equal(comp["composite"].values, made.mean("time").values)
    assert (comp["count"] == SCENES).all()


# --- zones, files and pictures -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compute", [False, True])
def test_a_difference_of_zero_counts_in_zones_and_files(files, tmp_path, compute):
    comp = s2c.composite(s2c.open_cube(files), "median")
    layer = (comp.compute() if compute else comp)["composite"].astype("float32")
    made = (layer[1] - layer[0]).rename("difference")
    expected = made.values[3:]
    (row,) = s2c.zonal_stats(made, zones(3), ["mean", "count"], name="id").to_dict("records")
    assert (row["mean"], row["count"]) == pytest.approx((expected.mean(), expected.size))
    (path,) = s2c.Composite(made.to_dataset()).to_raster(str(tmp_path / "out.tif"), progress=False)
    with rasterio.open(path) as source:
        assert np.isnan(source.nodata)
        np.testing.assert_array_equal(source.read(1), made.values)
        assert source.read_masks(1).all()


def test_layers_of_composites_keep_their_meaning(files, tmp_path):
    comp = s2c.composite(s2c.open_cube(files)).compute()
    assert [missing_value_of(comp[name]).nodata for name in ("composite", "source", "count")] == [0, -1, None]
    changed = comp.dataset.assign(composite=comp["composite"].astype("int16") - np.int16(5))
    with pytest.raises(ParameterError, match=r"'composite' \(int16\) was derived"):
        s2c.Composite(changed).to_raster(str(tmp_path / "out.tif"))
    (row,) = s2c.zonal_stats(comp, zones(0), ["min", "count"], layer="count", name="id").to_dict("records")
    assert (row["min"], row["count"]) == (0, SIDE * SIDE)
    assert "nodata" not in comp.date().attrs


@pytest.mark.parametrize("compute", [False, True])
def test_zeros_that_count_as_data_are_logged(files, caplog, compute):
    comp = s2c.composite(s2c.open_cube(files), "median")
    layer = (comp.compute() if compute else comp)["composite"].astype("float32")
    s2c.zonal_stats(layer[1] - layer[0], zones(0), ["mean"])
    assert "nodata value 0 and has no NaN, so every value counts as data" in caplog.text


def test_pictures_show_what_is_data(files):
    comp = s2c.composite(s2c.open_cube(files), "median").compute()
    layer = comp["composite"].astype("float32").where(comp["count"] > 0)
    made = (layer[1:] - layer[:1].values).to_dataset(name="composite").assign_attrs(reducer="difference")
    axes = s2c.Composite(made.assign_coords(scene_time=comp.dataset["scene_time"])).plot()
    seen = axes.images[-1].get_array()[..., 3] > 0
    np.testing.assert_array_equal(seen, np.broadcast_to(np.arange(SIDE)[:, None] >= 3, seen.shape))


# --- arrays of other libraries -----------------------------------------------------------------------------------------------


def opened(files, **how):
    arrays = [rioxarray.open_rasterio(path, **how).assign_coords(time=pd.Timestamp(2023, 6, 1 + t)) for t, path in
              enumerate(files)]  # fmt: skip
    return xr.concat(arrays, "time")


@pytest.mark.parametrize("nodata", [0, -9999])
@pytest.mark.parametrize("how", [{"masked": True}, {"mask_and_scale": True}, {"masked": True, "chunks": {}}])
def test_decoded_arrays_hold_nan(tmp_path, how, nodata):
    same(opened(series(tmp_path, nodata=nodata, dtype="int16"), **how), truth())


@pytest.mark.parametrize("nodata", [0, -9999])
@pytest.mark.parametrize("chunks", [None, {}])
def test_raw_arrays_of_rioxarray(tmp_path, chunks, nodata):
    raw = opened(series(tmp_path, nodata=nodata, dtype="int16"), chunks=chunks)
    comp = s2c.composite(raw, "median").compute()
    assert comp["composite"].attrs["nodata"] == nodata
    np.testing.assert_array_equal(comp["count"].values[:, 0], np.repeat([0, SCENES], [3, 9]))
    shifted = raw - np.int16(1000)
    if chunks is None:
        with pytest.raises(ParameterError, match="cannot be determined"):
            s2c.composite(shifted, "median")
    else:
        comp = s2c.composite(shifted, "median").compute()
        assert comp["composite"].attrs["nodata"] == nodata - 1000
        np.testing.assert_array_equal(comp["count"].values[:, 0], np.repeat([0, SCENES], [3, 9]))
        same(raw / 10000 + 1, truth() / 10000 + 1)


@pytest.mark.parametrize("bands", [[0, 1], [0]])
@pytest.mark.parametrize("chunks", [None, {}])
def test_datasets_of_the_rasterio_engine(files, bands, chunks):
    parts = [
        xr.open_dataset(path, engine="rasterio", chunks=chunks).assign_coords(time=pd.Timestamp(2023, 6, 1 + t))
        for t, path in enumerate(files)
    ]
    same(xr.concat(parts, "time").isel(band=bands), truth().isel(band=bands))


@pytest.mark.parametrize("chunks", [{}, None])
def test_odc_stac(items, chunks):
    loaded = odc.stac.load([pystac.Item.from_dict(i) for i in items], bands=["red", "nir"], chunks=chunks)
    comp = s2c.composite(loaded, "median").compute()
    assert comp["composite"].dtype == np.uint16
    np.testing.assert_array_equal(comp["composite"].values, truth().median("time").fillna(0).values)
    red, nir = loaded["red"].where(loaded["red"] > 0), loaded["nir"].where(loaded["nir"] > 0)
    ndvi = (nir - red) / (nir + red) - 0.1 * (red == 1000)
    raw = truth()
    same(
        ndvi, ((raw[:, 1:] - raw[:, :1].values) / (raw[:, 1:] + raw[:, :1].values) - 0.1 * (raw[:, :1].values == 1000))
    )
    shifted = loaded.astype("int16") - np.int16(1000)
    if chunks is None:
        for changed in (shifted, loaded / 10000, loaded["red"] / 10000, loaded["red"].astype("int16") - np.int16(1000)):
            with pytest.raises(ParameterError, match="cannot be determined"):
                s2c.composite(changed, "median")
    else:
        comp = s2c.composite(shifted, "median").compute()
        np.testing.assert_array_equal(comp["composite"].values, (truth().median("time") - 1000).fillna(-1000).values)
        same(loaded / 10000, truth() / 10000)
        same(loaded["red"] / 10000, truth()[:, :1] / 10000)


def test_stackstac(items):
    stacked = stackstac.stack(items, assets=["red", "nir"], epsg=32631, resolution=10)
    same(stacked, truth())
    red, nir = stacked.sel(band="red"), stacked.sel(band="nir")
    same((nir - red).expand_dims(band=["difference"]), truth().diff("band"))


# --- datasets and dimensions -----------------------------------------------------------------------------------------------


def dataset(**attrs):
    times = pd.date_range("2023-06-01", periods=SCENES)
    values = np.stack([numbers(t) for t in range(SCENES)]).astype("int16")
    return xr.Dataset(
        {name: (("time", "y", "x"), values[:, b], {"nodata": 0} | attrs) for b, name in enumerate(("red", "nir"))},
        {"time": times},
    )


def test_each_variable_keeps_its_own_nodata():
    data = dataset()
    data["nir"] = data["nir"].where(data["nir"] != 0, -9999).assign_attrs(nodata=-9999)
    data["nir"].values[0, 9, 9] = 0
    expected = truth()
    expected[0, 1, 9, 9] = 0
    same(data, expected)
    data["scl"] = (data["red"] * 0 + 4).astype("uint8").drop_attrs()
    comp = s2c.composite(data, "median", valid=[s2c.Nodata(), s2c.SCL()]).compute()
    np.testing.assert_allclose(comp["composite"].values, expected.median("time").values)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.assign(time_bnds=(("time", "bnds"), np.zeros((SCENES, 2)))),
        lambda d: d.assign(spatial_ref=((), 0, {"crs_wkt": rasterio.CRS.from_epsg(32631).to_wkt()})),
        lambda d: d.assign(crs=("time", [b""] * SCENES, {"spatial_ref": rasterio.CRS.from_epsg(32631).to_wkt()})),
        lambda d: d.rename(y="lat", x="lon").transpose("time", "lon", "lat"),
        lambda d: d.rename(y="Y", x="X", time="valid_time").assign_coords(time=0),
        lambda d: d.rename(y="northing", x="easting", time="t"),
        lambda d: d.to_dataarray("variable").assign_attrs(nodata=0),
        lambda d: d.to_dataarray("bands").assign_attrs(_FillValue=0),
        lambda d: d.to_dataarray("band").assign_attrs(nodata=0).to_dataset(name="band_data"),
        lambda d: d.to_dataarray("wavelength").assign_attrs(missing_value=np.array([0])).to_dataset(name="all"),
    ],
)
def test_usual_names_and_helper_variables(change):
    comp = s2c.composite(change(dataset()), "median").compute()
    np.testing.assert_array_equal(comp["composite"].values, truth().median("time").fillna(0).values)
    np.testing.assert_array_equal(comp["count"].values[:, 0], np.repeat([0, SCENES], [3, 9]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.assign(dem=(("y", "x"), np.zeros((SIDE, SIDE)))), "dem of the Dataset has no time.*drop_vars"),
        (lambda d: d.expand_dims("band"), r"several variables of the Dataset have bands \(red, nir\)"),
        (lambda d: d[["red"]].isel(x=0, drop=True), "no variable of the Dataset has y and x; it has red"),
        (lambda d: d.isel(time=0).to_dataarray("band"), r"give it one with \.expand_dims\('time'\)"),
        (lambda d: d.rename(x="column"), "no variable"),
        (lambda d: d.isel(y=slice(0, 0)), "the cube has no rows"),
        (lambda d: d.sel(time=slice("2030", None)).isel(x=[]), "the cube has no times and no columns"),
        (lambda d: d.to_dataarray("band").isel(band=[]), "the cube has no bands"),
        (lambda d: dataset(nodata="none"), "'red' declares nodata='none'; give one number"),
        (lambda d: dataset(nodata=[0, 1]), "give one number"),
    ],
)
def test_what_is_not_understood_is_refused(change, words):
    with pytest.raises(ParameterError, match=words):
        s2c.composite(change(dataset()), "median")


def test_single_scene_with_restored_time_axis(files):
    cube = s2c.open_cube(files)
    one = cube.isel(time=1).expand_dims("time")
    expected = s2c.composite(cube.isel(time=[1]), "median").compute()
    for found in (one, one.compute()):
        comp = s2c.composite(found, "median").compute()
        np.testing.assert_array_equal(comp["composite"].values, expected["composite"].values)
        assert comp.dataset["scene"].values.tolist() == expected.dataset["scene"].values.tolist()
    assert s2c.select_scenes(one, min_valid=0.1).sizes["time"] == 1


# --- declarations ------------------------------------------------------------------------------------------------------------


def test_a_cube_that_was_written_and_opened_again(files, tmp_path):
    cube = s2c.open_cube(files)
    expected = s2c.composite(cube, "median").compute()
    cube.to_zarr(tmp_path / "cube.zarr")
    cube.astype("int32").astype("int16").to_netcdf(tmp_path / "cast.nc")
    comp = s2c.composite(xr.open_zarr(tmp_path / "cube.zarr")["cube"], "median").compute()
    for layer in ("composite", "count"):
        np.testing.assert_array_equal(comp[layer].values, expected[layer].values)
    with pytest.raises(ParameterError, match="cannot be determined"):
        s2c.composite(xr.open_dataset(tmp_path / "cast.nc")["cube"], "median")


@pytest.mark.parametrize("name", ["difference.nc", "difference.zarr"])
def test_a_difference_of_a_cube_that_was_written_and_opened_again(name, files, tmp_path):
    s2c.open_cube(files).to_zarr(tmp_path / "cube.zarr")
    numbers = xr.open_zarr(tmp_path / "cube.zarr")["cube"].astype("float32")
    difference = numbers - numbers.isel(time=0, drop=True)
    if name.endswith(".nc"):
        difference.rename("cube").to_netcdf(tmp_path / name)
    else:
        difference.rename("cube").to_zarr(tmp_path / name)
    for chunks in (None, {}):
        opened = xr.open_dataset(tmp_path / name, chunks=chunks)["cube"]
        with pytest.raises(ParameterError, match="cannot be determined"):
            s2c.composite(opened, "median")
        comp = s2c.composite(opened, "median", valid=()).compute()
        np.testing.assert_array_equal(comp["count"], SCENES)
        np.testing.assert_array_equal(comp["composite"], difference.median("time"))


def test_nodata_set_with_rioxarray_is_used(files):
    made = s2c.open_cube(files).compute().astype("int16") - np.int16(1000)
    comp = s2c.composite(made.rio.write_nodata(-1000), "median").compute()
    np.testing.assert_array_equal(comp["count"].values[:, 0], np.repeat([0, SCENES], [3, 9]))
    assert comp["composite"].attrs["nodata"] == -1000


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_arrays_without_any_declaration(dtype):
    values = np.array([0, 7, 9], dtype).reshape(3, 1, 1, 1)
    comp = s2c.composite(xr.DataArray(values, dims=("time", "band", "y", "x")), "min").compute()
    assert comp["composite"].item() == (0 if dtype == "float32" else 7)


def test_handmade_arrays_with_declared_nodata():
    values = np.array([-9999, 7, 9], "float32").reshape(3, 1, 1, 1)
    for nodata in (-9999, np.float32(-9999), "-9999"):
        array = xr.DataArray(values, dims=("time", "band", "y", "x"), attrs={"nodata": nodata})
        assert s2c.composite(array, "min").compute()["composite"].item() == 7
