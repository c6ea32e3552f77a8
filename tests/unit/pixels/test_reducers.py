"""The registry of reducers, recipes and their layers, and how kernels are compiled and kept."""

import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from s2composite.errors import BandError, ParameterError
from s2composite.pixels.kernels import compile_cache as compiled
from s2composite.pixels.recipe import DTYPES
from s2composite.pixels.reducers import Recipe, reduce_block, resolve_reducer, scene_shares

MEDIAN = resolve_reducer("luminance_median")


def test_a_reducer_is_found_by_name_or_returned():
    assert resolve_reducer(MEDIAN) is MEDIAN
    assert resolve_reducer("rank", key="B04") == resolve_reducer("rank", key="B04")
    assert str(MEDIAN) == "luminance_median"
    assert str(resolve_reducer("rank", key="B04")) == "rank(key='B04', quantile=0.5)"


@pytest.mark.parametrize(
    ("name", "params", "said"),
    [
        ("medain", {}, "luminance_median"),
        ("luminance_median", {"quantile": 1}, "has no parameter 'quantile'; it has none"),
        (MEDIAN, {"quantile": 1}, "already has its parameters"),
        ("rank", {"quantile": 1.5}, "outside 0 to 1"),
        ("rank", {"quantile": float("nan")}, "outside 0 to 1"),
        ("rank", {"key": ("B04",)}, "two different bands"),
        ("rank", {"key": ("B04", "B04")}, "two different bands"),
        ("rank", {"key": "B04", "weights": {"B04": 1}}, "weights go with"),
        ("rank", {"weights": {}}, "at least one band"),
        ("rank", {"weights": {"B04": float("inf")}}, "finite"),
    ],
)
def test_wrong_reducers_are_named(name, params, said):
    with pytest.raises(ParameterError, match=said):
        resolve_reducer(name, **params)


@pytest.mark.parametrize(
    ("recipe", "dtype", "times", "error", "said"),
    [
        (Recipe((MEDIAN,)), "uint32", 3, ParameterError, "uint32"),
        (Recipe((MEDIAN,)), "complex64", 3, ParameterError, "convert the cube"),
        (Recipe((MEDIAN,)), "uint8", 32768, ParameterError, "32768 scenes"),
        (Recipe((MEDIAN,)), "uint8", 0, ParameterError, "at least 1"),
        (Recipe(()), "uint8", 3, ParameterError, "at least one"),
        (Recipe((MEDIAN, MEDIAN)), "uint8", 3, ParameterError, "different names"),
        (Recipe((MEDIAN,), min_count=0), "uint8", 3, ParameterError, "min_count=0"),
        (Recipe((resolve_reducer("rank", key="B08"),), bands=("B04",)), "uint8", 3, BandError, r"\['B08'\].*\['B04'\]"),
    ],
)
def test_a_recipe_that_cannot_work_says_why(recipe, dtype, times, error, said):
    with pytest.raises(error, match=said):
        recipe.layers(np.dtype(dtype), times)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_are_what_reduce_block_returns(dtype):
    recipe = Recipe(
        (MEDIAN, resolve_reducer("rank", key="b"), resolve_reducer("rank", key="a").named("other")), bands=("a", "b")
    )
    result = reduce_block(np.ones((3, 2, 4, 5), dtype), recipe)
    layers = recipe.layers(np.dtype(dtype), 3)
    assert [layer.name for layer in layers] == [
        "luminance_median", "luminance_median_source", "rank", "rank_source", "other", "other_source", "count",
    ]  # fmt: skip
    assert list(result) == [layer.name for layer in layers]
    for layer in layers:
        assert result[layer.name].shape == ((2, 4, 5) if layer.dims == ("band", "y", "x") else (4, 5))
        assert result[layer.name].dtype == layer.dtype
        assert result[layer.name].flags.c_contiguous


def test_layers_of_one_reducer():
    composite, source, count = Recipe((MEDIAN,), nodata=7).layers(np.dtype("uint8"), 3)
    assert (composite.name, composite.nodata, composite.overviews) == ("composite", 7, "average")
    assert (source.name, source.nodata, source.overviews) == ("source", -1, "nearest")
    assert (count.name, count.nodata) == ("count", None)
    assert np.isnan(Recipe((MEDIAN,)).layers(np.dtype("float32"), 3)[0].nodata)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pixels": np.ones((3, 4, 5), np.uint8)}, "3 dimensions"),
        ({"valid": np.ones((2, 4, 5), bool)}, "fits the pixels"),
        ({"valid": np.ones((3, 4, 5), np.uint8)}, "fits the pixels"),
        ({"scenes": [3]}, "0 to 2"),
        ({"scenes": [-1]}, "0 to 2"),
        ({"scenes": [0.5]}, "indices"),
    ],
)
def test_wrong_blocks_are_named(change, said):
    arguments = {"pixels": np.ones((3, 2, 4, 5), np.uint8), "recipe": Recipe((MEDIAN,))} | change
    with pytest.raises(ParameterError, match=said):
        reduce_block(**arguments)


def test_recipes_travel():
    recipe = Recipe((MEDIAN, resolve_reducer("rank", key=("B08", "B04"), quantile=0.9)), bands=("B04", "B08"))
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert len(pickle.dumps(recipe)) < 4096


def test_scene_shares():
    source = np.array([[0, 2, -1], [2, 2, 0]], np.int16)
    np.testing.assert_allclose(scene_shares(source, 4), [2 / 6, 0, 3 / 6, 0])


def test_inputs_stay_as_they_are():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 3, 5, 6), dtype=np.uint8)
    before = pixels.copy()
    reduce_block(pixels, Recipe((MEDIAN,)), valid=np.ones((4, 5, 6), bool))
    np.testing.assert_array_equal(pixels, before)
    assert pixels.flags.writeable
    pixels.flags.writeable = False
    reduce_block(pixels, Recipe((MEDIAN,)))


def test_threads_do_not_disturb_each_other():
    rng = np.random.default_rng(0)
    stacks = [rng.integers(0, 256, (20, 3, 40, 50), dtype=np.uint8) for _ in range(8)]
    alone = [reduce_block(stack, Recipe((MEDIAN,))) for stack in stacks]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda stack: reduce_block(stack, Recipe((MEDIAN,))), stacks))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one["composite"], other["composite"])


CALL = """
import sys
import numpy as np
from s2composite.pixels.reducers import *
pixels = np.arange(1, 61).reshape(5, 3, 2, 2).astype(sys.argv[1])
print(reduce_block(pixels, Recipe((resolve_reducer("luminance_median"),)))["composite"].ravel().tolist())
"""
ANSWER = str(np.arange(1, 61).reshape(5, 3, 2, 2)[2].ravel().tolist())


def start(cache, dtype="uint8"):
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "NUMBA_CACHE_DIR": ""}
    return subprocess.Popen(
        [sys.executable, "-c", CALL, dtype], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def answer(process):
    out, err = process.communicate()
    assert process.returncode == 0, err
    return out.strip()


@pytest.mark.slow
def test_processes_that_fill_a_cold_cache_together(tmp_path):
    processes = [start(tmp_path, dtype) for dtype in ("uint8", "uint16", "uint8", "uint16")]
    assert {answer(process) for process in processes} == {ANSWER}
    kept = sorted((tmp_path / "s2composite-kernels").iterdir())
    assert [file.name.rsplit("-", 1)[0] for file in kept] == ["rank_by_key", "rank_by_small_key"]
    stamps = [file.stat().st_mtime_ns for file in kept]
    assert answer(start(tmp_path)) == ANSWER
    assert [file.stat().st_mtime_ns for file in kept] == stamps, "the second time it is read, not compiled"


@pytest.mark.slow
def test_a_damaged_kernel_file_is_replaced(tmp_path):
    assert answer(start(tmp_path)) == ANSWER
    (file,) = (tmp_path / "s2composite-kernels").iterdir()
    whole = file.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"something else"):
        file.write_bytes(content)
        assert answer(start(tmp_path)) == ANSWER
        assert len(file.read_bytes()) > len(whole) // 2


@pytest.mark.slow
def test_without_a_directory_to_write_to(tmp_path):
    (tmp_path / "file").write_text("")
    assert answer(start(tmp_path / "file")) == ANSWER


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(compiled.Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        compiled._write(tmp_path / "kernel", b"1234")
    assert not list(tmp_path.iterdir())


def test_a_changed_source_is_another_kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    cache, codegen = compiled._KernelCache(CALL.strip), type("Codegen", (), {"magic_tuple": lambda _: ("cpu",)})()
    before = cache._path("types", codegen)
    monkeypatch.setattr(compiled, "_sources", lambda: b"other")
    assert cache._path("types", codegen) != before
    assert cache._path("types", codegen) != cache._path("other types", codegen)


def twice(x):
    return 2 * x


class Intruder:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def let_others_write(path):
    path.chmod(path.stat().st_mode | 0o022)


def give_away(path):
    if os.geteuid():
        pytest.skip("only root can give files away")
    os.chown(path, 65534, -1)


def link(path):
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


@pytest.mark.parametrize("place", ["file", "directory", "parent"])
@pytest.mark.parametrize("change", [None, let_others_write, give_away, link])
def test_only_kernels_that_nobody_else_can_write_are_loaded(place, change, tmp_path, monkeypatch, caplog):
    parent, left = tmp_path / "parent", tmp_path / "left"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(parent))
    compiled._warn_once.cache_clear()
    assert compiled.kernel(twice)(21) == 42
    (file,) = (parent / "s2composite-kernels").iterdir()
    file.write_bytes(pickle.dumps(Intruder(left)))
    if change:
        change({"file": file, "directory": file.parent, "parent": parent}[place])
    assert compiled.kernel(twice)(21) == 42
    # a link of the user's own to a directory is the user's own, too
    trusted = change is None or (change is link and place != "file")
    assert left.exists() == trusted
    said = [record.message for record in caplog.records if record.name == compiled.__name__]
    assert len(said) == (0 if trusted or change is link else 1)
    assert all("other" in message and str(parent) in message for message in said)
    assert compiled.kernel(twice)(21) == 42


def test_a_directory_under_tmp_is_as_safe_as_one_at_home(tmp_path, monkeypatch):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o1777)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "shared"))
    assert compiled.cache_directory() == tmp_path / "shared" / "s2composite-kernels"
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "taken"))
    (tmp_path / "taken" / "s2composite-kernels").mkdir(parents=True, mode=0o777)
    (tmp_path / "taken" / "s2composite-kernels").chmod(0o1777)
    assert compiled.cache_directory() is None
