"""The whole path over the network: the same bytes as from disk, from three kinds of servers, with and without faults."""

import numpy as np
import pytest

import s2composite as s2c
from s2composite.errors import ReadError, SceneError
from support.http_faults import fault_server
from support.storage_servers import BUCKETS


@pytest.fixture(scope="module")
def local(scenes_dir):
    return s2c.composite(s2c.open_cube(scenes_dir)).compute()


def same(a, b):
    for layer in ("composite", "count", "source"):
        np.testing.assert_array_equal(a[layer].values, b[layer].values)


@pytest.mark.parametrize("kind", BUCKETS)
def test_buckets_give_the_same_bytes(kind, scenes_dir, local):
    with kind() as server, server.selected():
        for path in sorted(scenes_dir.glob("*.tif")):
            server.put_file(f"granules/t31tcj/{path.name}", path)
        prefix = f"{server.scheme}://granules/t31tcj/"
        same(s2c.composite(s2c.open_cube(prefix)).compute(), local)
        same(s2c.composite(s2c.open_cube(prefix, engine="gdal")).compute(), local)


def test_transient_faults_change_nothing(scenes_dir, local):
    def fault(path, n):
        return {3: "503", 5: "reset", 7: "short"}.get(n % 11)

    with fault_server(scenes_dir, fault=fault) as server:
        urls = [server.url(path.name) for path in sorted(scenes_dir.glob("*.tif"))]
        same(s2c.composite(s2c.open_cube(urls, chunks=512)).compute(), local)


def test_scene_deleted_during_the_run_is_named_or_skipped(scenes_dir, local):
    paths = sorted(scenes_dir.glob("*.tif"))
    gone = set()

    def fault(path, n):
        return "404" if any(name in path for name in gone) else None

    with fault_server(scenes_dir, fault=fault) as server:
        urls = [server.url(path.name) for path in paths]
        cube, tolerant = s2c.open_cube(urls), s2c.open_cube(urls, on_error="skip")
        gone.add(paths[4].name)
        with pytest.raises(ReadError, match=rf"scene {paths[4].name[:22]}.*window.*404"):
            s2c.composite(cube).compute()
        comp = s2c.composite(tolerant).compute()
        assert (comp["read_status"].values[4] == 2).all()
        assert (np.delete(comp["read_status"].values, 4, axis=0) == 0).all()
        without = s2c.composite(s2c.open_cube([p for p in paths if p != paths[4]])).compute()
        np.testing.assert_array_equal(comp["composite"], without["composite"])
        with pytest.raises(SceneError, match=paths[4].name):
            s2c.open_cube(urls)
