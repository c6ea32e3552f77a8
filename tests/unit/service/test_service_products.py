"""Jobs with many products over HTTP: cells of a grid, months of a span; the same as from Python."""

import numpy as np
import pytest
import rasterio

import s2composite as s2c
from support.rasters import series
from support.services import served

pytestmark = pytest.mark.slow

BOX = {"bbox": [300000, 4898100, 301300, 4900000], "bbox_crs": "EPSG:32631"}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    root = tmp_path_factory.mktemp("products")
    for name in ("scenes", "store", "here"):
        (root / name).mkdir()
    return root


@pytest.fixture(scope="module")
def scenes(places):
    return series(places / "scenes", scenes=3)


@pytest.fixture(scope="module")
def service(places, scenes):
    settings = {"read": [str(places / "scenes")], "storage": str(places / "store"), "limits": {"products": 20}}
    with served(places / "run", **settings) as service:
        yield service


def same(path, other):
    with rasterio.open(path) as made, rasterio.open(other) as wanted:
        assert made.transform == wanted.transform
        assert np.array_equal(made.read(), wanted.read())


def test_cells_over_http_are_those_of_python(service, places, scenes):
    job = {"source": str(places / "scenes"), "output": "m_{cell}.tif", "grid": {"type": "utm", "size": 1000}, **BOX}
    number = service.post("/jobs", job).json()["id"]
    facts = service.job(number, "complete", "failed")
    assert facts["state"] == "complete", service.get(f"/jobs/{number}/log").text
    folder = places / "store" / number
    here = job | {"output": str(places / "here" / "m_{cell}.tif"), "cluster": {"workers": 1}}
    made = {cell.name for cell, result in s2c.run_cells(here, announce=False) if result is not None}
    assert len(made) > 1
    assert {path.name for path in folder.glob("*.tif")} == {f"m_{name}.tif" for name in made}
    for name in made:
        same(folder / f"m_{name}.tif", places / "here" / f"m_{name}.tif")
    products = {one["name"]: one for one in facts["products"]}
    assert {name for name, one in products.items() if one["state"] == "complete"} == made
    assert facts["counts"]["done"] == facts["counts"]["windows"] == sum(p["counts"]["done"] for p in products.values())
    assert facts["progress"] == 1.0
    one = min(made)
    with service.client() as client:
        report = client.get(f"/jobs/{number}/report", params={"product": one}, headers={"accept": "application/json"})
        assert f"m_{one}.tif" in report.json()["files"][0]
        look = client.get(f"/jobs/{number}/quicklook.png", params={"product": one})
        assert look.content.startswith(b"\x89PNG")
        assert client.get(f"/jobs/{number}/report", params={"product": "none"}).status_code == 404
        assert number in client.get("/").text


def test_months_over_http(service, places, scenes):
    """One month has no scene: the job fails and names it; the others exist, and a retry does not compute them again."""
    job = {"source": str(places / "scenes"), "output": "m_{{pointInTime}}.tif"}
    job["span"] = {"start": "2023-05", "end": "2023-06"}
    number = service.post("/jobs", job).json()["id"]
    facts = service.job(number, "complete", "failed")
    log = service.get(f"/jobs/{number}/log").text
    assert (facts["state"], facts["error"]) == (
        "failed",
        "1 of 2 products failed; the others are kept",
    )
    assert "2023-05: " in log
    (made,) = (places / "store" / number).glob("*.tif")
    assert made.name == "m_202306.tif"
    assert [one["state"] for one in facts["products"]] == ["new", "complete"]
    before = made.stat()
    assert service.post(f"/jobs/{number}/retry", None).status_code == 202
    again = service.job(number, "failed")
    assert again["attempts"] == 2
    assert made.stat().st_ino == before.st_ino
    whole = str(places / "here" / "june.tif")
    s2c.composite(s2c.open_cube(scenes)).to_raster(whole)
    same(made, whole)
