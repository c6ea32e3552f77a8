"""Maps: pages that a browser shows without a network, with a slider for periods."""

import base64

import imagecodecs
import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rasterio import Affine

import s2composite as s2c
from s2composite.analysis import explore
from s2composite.errors import GridError, ParameterError, WriteError
from s2composite.pixels.stretch import NO_DATA_COLOUR
from support.browser import chromium, needs_browser

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200)]


def months(size=60):
    """Three months, of one colour each."""
    values = np.array(COLOURS, "uint8").reshape(3, 3, 1, 1) * np.ones((1, 1, size, size), "uint8")
    grid = GeoBox((size, size), Affine(10, 0, 500000, 0, -10, 5000000), 32631)
    coords = dict(xr_coords(grid, dims=("y", "x")))
    times = np.array(["2023-04-10", "2023-05-10", "2023-06-10"], "datetime64[ns]")
    cube = xr.DataArray(values, {**coords, "time": times}, ("time", "band", "y", "x"))
    return s2c.composite(cube, period="month")


def centre_colour(driver):
    """The colour in the middle of the map, as the browser has painted it."""
    import io

    import imagecodecs
    from selenium.webdriver.common.by import By

    shot = driver.get_screenshot_as_png()
    picture = imagecodecs.png_decode(io.BytesIO(shot).getvalue())
    width = driver.execute_script("return window.innerWidth")
    place = driver.find_element(By.CSS_SELECTOR, "body").rect
    assert place["width"] > 300
    scale = picture.shape[1] / width
    return tuple(int(v) for v in picture[int(350 * scale), int(width / 2 * scale), :3])


_METRES_A_PIXEL = """
const models = [...Bokeh.documents[0]._all_models.values()];
const map = models.find((model) => model.type == 'Figure');
return [(map.x_range.end - map.x_range.start) / map.inner_width, (map.y_range.end - map.y_range.start) / map.inner_height]
"""


@needs_browser
def test_the_slider_shows_one_period_after_the_other_without_a_network(tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait

    page = months().explore(basemap=None).save(tmp_path / "map.html")
    with chromium(1000, 760) as driver:
        driver.get(f"file://{page}")
        for month, colour in enumerate(COLOURS):
            if month:
                driver.execute_script(
                    "const doc = Bokeh.documents[0];"
                    "for (const model of doc._all_models.values()) if (model.type == 'Slider') model.value = arguments[0]",
                    month,
                )
            WebDriverWait(driver, 30).until(lambda d, colour=colour: centre_colour(d) == colour)
        across, down = driver.execute_script(_METRES_A_PIXEL)
        assert across == pytest.approx(down, rel=0.02), "a square is one, however wide the page is"
        assert [line for line in driver.get_log("browser") if line["level"] == "SEVERE"] == []


def test_pictures_lie_where_the_pixels_are():
    size = 60
    page = months(size).explore(basemap=None).layout
    canvas = page.children[1]
    pictures = [renderer for renderer in canvas.renderers if renderer.glyph.__class__.__name__ == "ImageURL"]
    assert [picture.visible for picture in pictures] == [True, False, False]
    west, south, east, north = (
        GeoBox((size, size), Affine(10, 0, 500000, 0, -10, 5000000), 32631).extent.to_crs("EPSG:3857").boundingbox.bbox
    )
    glyph = pictures[0].glyph
    assert glyph.x == pytest.approx(west, abs=30)
    assert glyph.y == pytest.approx(north, abs=30)
    assert glyph.x + glyph.w == pytest.approx(east, abs=30)
    assert glyph.y - glyph.h == pytest.approx(south, abs=30)


def test_periods_are_called_as_people_call_them_and_each_can_be_seen():
    values = np.array([[100, 200], [5000, 9000]], "uint16").repeat(1800, 1).reshape(2, 1, 60, 60).repeat(3, 1)
    times = np.array(["2023-01-10", "2023-06-10"], "datetime64[ns]")
    grid = GeoBox((60, 60), Affine(10, 0, 500000, 0, -10, 5000000), 32631)
    cube = xr.DataArray(values, {**xr_coords(grid, dims=("y", "x")), "time": times}, ("time", "band", "y", "x"))
    comp = s2c.composite(cube, period="season")
    slider, canvas = comp.explore(basemap=None).layout.children
    assert slider.format.args["labels"] == ["Dec 2022-Feb 2023", "Mar-May 2023", "Jun-Aug 2023"]
    assert canvas.background_fill_color == NO_DATA_COLOUR
    for stretch, expected in ((None, [255, 0, 255]), ("common", [pytest.approx(3, abs=2), 0, 255])):
        pictures = comp.explore(basemap=None, stretch=stretch).layout.children[1].renderers
        assert [picture_of(one)[..., :3].max() for one in pictures] == expected
    assert ", Jun-Aug 2023" in comp.period("2023-06--P3M").explore(basemap=None).title


def test_a_composite_without_periods_has_no_slider_and_a_notebook_shows_it():
    one = months().period("2023-05").explore()
    assert not hasattr(one.layout, "children")
    assert one._repr_html_().startswith("<iframe srcdoc=")


def test_the_more_periods_the_coarser_is_each(monkeypatch):
    size = len(months(600).explore(basemap=None).to_html())
    monkeypatch.setattr(explore, "_PIXELS", 3 * 60 * 60)
    layout = months(600).explore(basemap=None).layout
    widths = [decoded_width(renderer) for renderer in layout.children[1].renderers]
    assert max(widths) < 100, "of 600 pixels each"
    assert len(months(600).explore(basemap=None).to_html()) < size


def decoded_width(renderer):
    return picture_of(renderer).shape[1]


def picture_of(renderer):
    url = renderer.glyph.url
    (text,) = renderer.data_source.data["url"] if isinstance(url, str) or "field" in str(url) else [str(url)]
    return imagecodecs.png_decode(base64.b64decode(text.partition(",")[2]))


def test_what_cannot_be_shown(tmp_path):
    comp = months()
    with pytest.raises(ParameterError, match="no layer 'mean'"):
        comp.explore(layer="mean")
    with pytest.raises(ParameterError, match="basemap='Mars'"):
        comp.explore(basemap="Mars")
    with pytest.raises(ParameterError, match="no data"):
        s2c.Composite(comp.dataset * 0).explore()
    with pytest.raises(GridError, match="no coordinate system"):
        s2c.Composite(comp.dataset.drop_vars(["spatial_ref", "x", "y"])).explore()
    comp.explore().save(tmp_path / "map.html")
    with pytest.raises(WriteError, match="exists"):
        comp.explore().save(tmp_path / "map.html")
