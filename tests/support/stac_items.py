"""STAC items of small rasters, and a server that searches them."""

import contextlib
import http.server
import json
import threading
from pathlib import Path

import rasterio
import rasterio.warp

RECORDED = Path(__file__).parent / "data_stac"


def recorded(name):
    """Return an item in the shape that a public catalogue has.

    Most were recorded, see ``data_stac/README.md``.
    """
    return json.loads((RECORDED / f"{name}.json").read_text())


def item_of(scene_id, time, assets, *, collection="sentinel-2-l2a", projection=True, bands=None, **properties):
    """Return an item of rasters ``{key: path}``, in the form of Earth Search."""
    made, box = {}, None
    for key, path in assets.items():
        with rasterio.open(path) as dataset:
            facts = {"href": str(path), "type": "image/tiff; application=geotiff", "roles": ["data"]}
            if projection:
                facts["proj:epsg"] = dataset.crs.to_epsg()
                facts["proj:shape"] = list(dataset.shape)
                facts["proj:transform"] = list(dataset.transform)
                facts["proj:bbox"] = list(dataset.bounds)
            facts["raster:bands"] = [{"data_type": kind, "nodata": dataset.nodata} for kind in dataset.dtypes]
            if bands and key in bands:
                facts["eo:bands"] = [{"name": name, "common_name": name} for name in bands[key]]
            made[key] = facts
            box = rasterio.warp.transform_bounds(dataset.crs, "EPSG:4326", *dataset.bounds)
    west, south, east, north = box
    ring = [[west, south], [east, south], [east, north], [west, north], [west, south]]
    return {
        "type": "Feature", "stac_version": "1.0.0", "stac_extensions": [], "id": scene_id, "collection": collection,
        "bbox": list(box), "geometry": {"type": "Polygon", "coordinates": [ring]}, "links": [], "assets": made,
        "properties": {"datetime": time, "platform": "sentinel-2a", "constellation": "sentinel-2", **properties},
    }  # fmt: skip


@contextlib.contextmanager
def search_server(items, page=2):
    """Serve a STAC API that filters by collection and datetime, in pages; yields its URL and what it was asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self, content, status=200):
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            url = f"http://127.0.0.1:{self.server.server_port}"
            self.answer({
                "type": "Catalog", "id": "here", "stac_version": "1.0.0", "description": "here",
                "conformsTo": [
                    "https://api.stacspec.org/v1.0.0/core", "https://api.stacspec.org/v1.0.0/item-search",
                    "https://api.stacspec.org/v1.0.0/item-search#query",
                ],
                "links": [
                    {"rel": "self", "href": url}, {"rel": "root", "href": url},
                    {"rel": "search", "href": f"{url}/search", "type": "application/geo+json", "method": "POST"},
                    {"rel": "search", "href": f"{url}/search", "type": "application/geo+json", "method": "GET"},
                ],
            })  # fmt: skip

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body)
            wanted = body.get("collections")
            found = [i for i in items if not wanted or i["collection"] in wanted]
            start = body.get("token", 0)
            content = {"type": "FeatureCollection", "features": found[start : start + page], "links": []}
            if start + page < len(found):
                url = f"http://127.0.0.1:{self.server.server_port}/search"
                content["links"] = [
                    {"rel": "next", "href": url, "method": "POST", "merge": True, "body": {"token": start + page}}
                ]
            self.answer(content)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()
