"""A web map of a composite, with a slider for its periods: one page of HTML.

Bokeh's script goes into the page, so that it opens from a disk or in a notebook without a network; only the background
comes from a server of tiles.
"""

from __future__ import annotations

import base64
import html
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import xarray as xr
from bokeh.embed import file_html
from bokeh.layouts import column
from bokeh.models import BoxZoomTool, CustomJS, CustomJSTickFormatter, DataRange1d, LayoutDOM, Slider, WheelZoomTool
from bokeh.plotting import figure
from bokeh.resources import INLINE
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from odc.geo.overlap import compute_output_geobox
from odc.geo.warp import rio_reproject

from s2composite.analysis.picture import heading, layers_of, panels_of, period_titles
from s2composite.cube.georeference import geobox_of
from s2composite.cube.result import Composed
from s2composite.errors import GridError, ParameterError
from s2composite.pixels.stretch import NO_DATA_COLOUR, Stretch, limits_of_each, painted
from s2composite.reading.grid import projected_box
from s2composite.writing.publish import put_small, target_of

__all__ = ["Map", "explore"]

_PIXELS = 12_000_000  # of all pictures of a page together; as PNG about 3 bytes each
_SIDE = 2000  # pixels along the longer side of one picture
_SHOW = "for (const [i, picture] of pictures.entries()) picture.visible = i == cb_obj.value"


@dataclass(frozen=True, eq=False)
class Map:
    """An interactive map; a notebook shows it as it is."""

    layout: LayoutDOM
    """What Bokeh draws: add to it, or serve it."""

    title: str
    """Of the page."""

    def to_html(self) -> str:
        """Return the map as a page that needs nothing beside it."""
        return str(file_html(self.layout, INLINE, self.title))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> str:
        """Write the map as a page.

        Returns
        -------
        str
            The file written.

        Raises
        ------
        WriteError
            The file exists or cannot be written.
        """
        target = target_of(os.fspath(path), overwrite=overwrite)
        put_small(self.to_html().encode(), target, overwrite=overwrite)
        return target

    def _repr_html_(self) -> str:
        page = html.escape(self.to_html(), quote=True)
        return f'<iframe srcdoc="{page}" style="width: 100%; height: 660px; border: 0"></iframe>'


def explore(
    composite: Composed | xr.Dataset,
    *,
    layer: str = "composite",
    bands: Sequence[Any] | None = None,
    stretch: Stretch | None = None,
    basemap: str | None = "OpenStreetMap Mapnik",
) -> Map:
    """Return a composite, or its layers, as a map with a slider for its periods; options as of `Composite.explore`."""
    dataset = layers_of(composite)
    periodic = "time" in dataset.dims
    whole = dataset if periodic else dataset.drop_vars(["time", "period"], errors="ignore").expand_dims(time=[0])
    side = min(_SIDE, math.isqrt(_PIXELS // whole.sizes["time"]))
    shown, panels = panels_of(whole, layer, bands, periodic=True, side=side)
    geobox = geobox_of(shown)
    if geobox is None or geobox.crs is None:
        raise GridError("the composite has no coordinate system, so it has no place on a map; write_crs() it")
    projected_box(geobox, CRS("EPSG:3857"))  # a map ends at the antimeridian
    target = compute_output_geobox(geobox, "EPSG:3857")
    pictures = []
    for panel, ends in zip(panels, limits_of_each(panels, stretch), strict=True):
        picture = np.zeros((*target.shape, 4), np.uint8)  # transparent outside of what is shown
        pictures.append(rio_reproject(painted(*panel, ends), picture, geobox, target, "nearest", ydim=0))
    title = ", ".join(heading(dataset, layer, bands or ()).splitlines())
    return Map(_layout(pictures, target, period_titles(whole), title, basemap), title)


def _layout(
    pictures: Sequence[NDArray[np.uint8]], grid: GeoBox, labels: Sequence[str], title: str, basemap: str | None
) -> LayoutDOM:
    west, south, east, north = grid.boundingbox.bbox
    wheel = WheelZoomTool()
    canvas = figure(
        title=title,
        x_axis_type="mercator",
        y_axis_type="mercator",
        # ranges that follow the data: those given would be stretched to the width of the page
        x_range=DataRange1d(range_padding=0),
        y_range=DataRange1d(range_padding=0),
        match_aspect=True,
        tools=["pan", wheel, BoxZoomTool(match_aspect=True), "reset", "save"],
        active_scroll=wheel,
        sizing_mode="stretch_width",
        height=600,
    )
    if basemap is None:
        canvas.background_fill_color = NO_DATA_COLOUR
    else:
        try:
            canvas.add_tile(basemap)
        except (ValueError, KeyError, AttributeError) as error:
            raise ParameterError(f"basemap={basemap!r}: {error}; such as 'CartoDB Positron', or None") from error
    drawn = [
        canvas.image_url(
            [f"data:image/png;base64,{base64.b64encode(imagecodecs.png_encode(picture)).decode()}"],
            x=west,
            y=north,
            w=east - west,
            h=north - south,
            anchor="top_left",
            visible=position == 0,
        )
        for position, picture in enumerate(pictures)
    ]
    if len(pictures) == 1:
        return canvas
    slider = Slider(
        start=0,
        end=len(pictures) - 1,
        value=0,
        step=1,
        title="period",
        format=CustomJSTickFormatter(args={"labels": list(labels)}, code="return labels[tick]"),
        margin=(10, 60, 0, 60),
        sizing_mode="stretch_width",
    )
    slider.js_on_change("value", CustomJS(args={"pictures": drawn}, code=_SHOW))
    return column(slider, canvas, sizing_mode="stretch_width")
