"""find_scenes finds what a user means in directories, globs, lists, buckets and web pages, and says what is wrong."""

import datetime as dt
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2composite.errors import ParameterError, SceneError, SourceError
from s2composite.scenes.find import find_scenes
from s2composite.scenes.model import Asset, Scene, Values
from support.storage_servers import BUCKETS, CREDENTIALS, free_port, http_server, locked, s3_server

PRODUCT = "S2A_MSIL2A_20230709T104621_N0509_R051_T31TCJ_20230709T170403"
FIRST, SECOND = "T31TCJ_20230704T104621", "T31TCJ_20230709T104629"


def fill(directory, *names):
    for name in names:
        path = Path(directory, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"-")
    return directory


def ids(scenes):
    return [scene.id for scene in scenes]


def names_of(scene):
    return [asset.name for asset in scene.assets]


def files_of(scenes):
    return [Path(asset.href).name for scene in scenes for asset in scene.assets]


@pytest.fixture
def folder(tmp_path):
    """Two scenes, one with two assets, among other things."""
    return fill(
        tmp_path / "T31TCJ",
        f"{SECOND}_TCI.tif", f"{SECOND}_SCL_20m.jp2", f"{FIRST}_TCI.TIFF",
        f"{SECOND}_item.json", f"{FIRST}_TCI.tif.ovr", f"{FIRST}_TCI.tif.aux.xml", "readme.txt",
        "._T31TCJ_20230704T104621_TCI.tif", "older/T31TCJ_20220704T104621_TCI.tif",
    )  # fmt: skip


# --- local sources --------------------------------------------------------------------------------------------------


def test_a_directory_gives_its_rasters_as_scenes_in_the_order_of_time(folder):
    first, second = find_scenes(folder)
    assert first == Scene(
        FIRST,
        dt.datetime(2023, 7, 4, 10, 46, 21, tzinfo=dt.UTC),
        (
            Asset(
                "TCI",
                str(folder / f"{FIRST}_TCI.TIFF"),
                ("red", "green", "blue"),
                values=Values(shift=0.0, assumed=True),
            ),
        ),
        granule="31TCJ",
        sensor="sentinel-2",
    )
    assert second.id == SECOND
    assert names_of(second) == ["SCL", "TCI"]
    assert second.asset("SCL").bands == ("SCL",)


@pytest.mark.parametrize(
    "form", ["{}", "{}/", "file://{}", "{}/../T31TCJ", "{}/*", "{}/*.[tTj]*", "{}/T31TCJ_2023*", "{}/../*"]
)
def test_ways_to_name_a_directory(folder, form):
    assert find_scenes(form.format(folder)) == find_scenes(folder)


def test_relative_paths_and_the_home_directory_become_absolute(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert find_scenes("T31TCJ") == find_scenes("~/T31TCJ") == find_scenes(Path("T31TCJ")) == find_scenes(folder)


def test_a_glob_chooses_assets_and_scenes(folder):
    assert files_of(find_scenes(f"{folder}/*_TCI.*")) == [f"{FIRST}_TCI.TIFF", f"{SECOND}_TCI.tif"]
    assert files_of(find_scenes(folder / "**" / "*_TCI.tif")) == ["T31TCJ_20220704T104621_TCI.tif", f"{SECOND}_TCI.tif"]


def test_a_glob_that_names_an_extension_means_it(tmp_path):
    fill(tmp_path, "a_20230709.img", "a_20230709.hdr", "a_20230710.tif")
    assert files_of(find_scenes(tmp_path / "*.img")) == ["a_20230709.img"]
    assert files_of(find_scenes(tmp_path / "a*")) == ["a_20230710.tif"]


def test_only_a_directory_without_rasters_is_searched_below(tmp_path):
    layout = "31/T/CJ/2023/7/S2B_31TCJ_20230709_0_L2A"
    fill(
        tmp_path, f"{layout}/TCI.tif", f"{layout}/B04.tif", f"{layout}/thumbnail.jpg", f"{layout}/.hidden/B05.tif.part"
    )
    (scene,) = find_scenes(tmp_path)
    assert scene.id == "S2B_31TCJ_20230709_0_L2A"
    assert (scene.platform, scene.granule, names_of(scene)) == ("S2B", "31TCJ", ["B04", "TCI"])


def test_a_safe_product_is_one_scene_with_its_finest_assets(tmp_path):
    images = f"{PRODUCT}.SAFE/GRANULE/L2A_T31TCJ_A042011_20230709T105026/IMG_DATA"
    stem = "T31TCJ_20230709T104621"
    fill(tmp_path, f"{images}/R10m/{stem}_B02_10m.jp2", f"{images}/R20m/{stem}_B02_20m.jp2")
    fill(tmp_path, f"{images}/R60m/{stem}_B02_60m.jp2", f"{images}/R60m/{stem}_B01_60m.jp2")
    fill(tmp_path, f"{images}/../QI_DATA/MSK_CLDPRB_20m.jp2", f"{images}/R20m/{stem}_SCL_20m.jp2")
    for source in (tmp_path, tmp_path / f"{PRODUCT}.SAFE", tmp_path / "*.SAFE", tmp_path / "**/*.jp2"):
        (scene,) = find_scenes(source)
        assert files_of([scene]) == [f"{stem}_B01_60m.jp2", f"{stem}_B02_10m.jp2", f"{stem}_SCL_20m.jp2"]
        assert (scene.orbit, scene.baseline, scene.platform) == (51, "05.09", "S2A")


def test_one_scene_may_lie_in_several_directories(tmp_path):
    fill(tmp_path, f"TCI/{SECOND}_TCI.tif", f"SCL/{SECOND}_SCL.tif")
    (scene,) = find_scenes([tmp_path / "SCL", tmp_path / "TCI"])
    assert names_of(scene) == ["SCL", "TCI"]


def test_strange_but_real_names(tmp_path):
    strange = fill(tmp_path / "été [2023] 100% #1", f"{FIRST}_TCI.tif")
    assert files_of(find_scenes(strange)) == [f"{FIRST}_TCI.tif"]
    assert files_of(find_scenes(strange / f"{FIRST}_TCI.tif")) == [f"{FIRST}_TCI.tif"]


def test_links_count_as_what_they_lead_to(folder, tmp_path):
    (tmp_path / "linked").symlink_to(folder)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / f"{FIRST}_TCI.tif").symlink_to(folder / f"{FIRST}_TCI.TIFF")
    assert ids(find_scenes(tmp_path / "linked")) == [FIRST, SECOND]
    assert ids(find_scenes(tmp_path / "other")) == [FIRST]


# --- lists, scenes, times -------------------------------------------------------------------------------------------


def test_lists_mix_files_globs_urls_and_scenes(folder):
    given_scene = Scene("mine", dt.datetime(2023, 7, 5, tzinfo=dt.UTC), (Asset("data", "/mine.tif"),))
    url = "gs://bucket/T31TCJ_20230801T104621_TCI.tif"
    found = find_scenes([url, folder / f"{SECOND}_TCI.tif", given_scene, f"{folder}/T31TCJ_20230704*"])
    assert ids(found) == [FIRST, "mine", SECOND, "T31TCJ_20230801T104621"]
    assert found[1] is given_scene
    assert found[3].assets[0].href == url


def test_scenes_alone_are_sorted_and_selected():
    early, late = (
        Scene(f"s{day}", dt.datetime(2023, 7, day, tzinfo=dt.UTC), (Asset("data", "/a.tif"),)) for day in (1, 2)
    )
    assert find_scenes(early) == (early,)
    assert find_scenes((late, early)) == (early, late)
    assert find_scenes(iter([late, early]), datetime="2023-07-02") == (late,)


def test_a_generator_of_paths_is_a_source(folder):
    assert ids(find_scenes(folder.glob("T31*.tif"))) == [SECOND]


def test_a_file_named_twice_counts_once(folder):
    assert find_scenes([folder, f"{folder}/*_TCI.tif", folder / f"{SECOND}_TCI.tif"]) == find_scenes(folder)


@given(st.permutations(range(12)))
def test_the_order_of_a_list_does_not_matter(order):
    urls = [
        f"gs://b/T31TC{granule}_20230{month}04T104621_{asset}.tif"
        for granule in "JK"
        for month in (1, 2, 3)
        for asset in ("TCI", "SCL")
    ]
    found = find_scenes([urls[i] for i in order])
    assert found == find_scenes(urls)
    assert [(scene.time.month, scene.granule) for scene in found] == [(m, f"31TC{g}") for m in (1, 2, 3) for g in "JK"]


def test_times_make_dates_in_names_unnecessary(tmp_path):
    fill(tmp_path, "b.tif", "a_TCI.tif", "c_20200101_20210101.tif")
    late, early, mid = "2023-07-09T10:46:29Z", dt.datetime(2023, 7, 1, 12, 0), dt.date(2023, 7, 2)  # noqa: DTZ001 - naive is UTC
    found = find_scenes(tmp_path, times=[late, early, mid])  # in the order of the names
    assert ids(found) == ["b", "c_20200101_20210101", "a"]
    assert [f"{scene.time:%d %H}" for scene in found] == ["01 12", "02 00", "09 10"]
    assert ids(find_scenes([tmp_path / "b.tif", tmp_path / "a_TCI.tif"], times=[late, early])) == ["a", "b"]


def test_a_pattern_reads_unusual_names(tmp_path):
    fill(tmp_path, "2023-190_nir08.tif", "2023-190_mask.tif", "2023-180_nir08.tif")
    found = find_scenes(tmp_path, pattern=r"(?P<date>\d{4}-\d{3})_(?P<asset>\w+)")
    assert [(scene.id, names_of(scene)) for scene in found] == [
        ("2023-180", ["nir08"]),
        ("2023-190", ["mask", "nir08"]),
    ]
    assert f"{found[1].time:%Y-%m-%d}" == "2023-07-09"


@pytest.mark.parametrize(
    ("datetime", "expected"),
    [
        ("2023", [FIRST, SECOND]),
        ("2023-07", [FIRST, SECOND]),
        ("2023-07-04", [FIRST]),
        ("2023-07-04/2023-07-09", [FIRST, SECOND]),
        ("2023-07-05/..", [SECOND]),
        ("../2023-07-05", [FIRST]),
        ("2023-07-09T10:46:29Z", [SECOND]),
        ((None, dt.date(2023, 7, 4)), [FIRST]),
        ((dt.datetime(2023, 7, 4, 10, 46, 21, tzinfo=dt.UTC), "2023-07-09T10:46:28Z"), [FIRST]),
    ],
)  # fmt: skip
def test_datetime_selects_inclusively(folder, datetime, expected):
    assert ids(find_scenes(folder, datetime=datetime)) == expected


# --- what is wrong --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "error", "what"),
    [
        ("{}/nowhere", SourceError, "{}/nowhere: it does not exist"),
        ("{}/nowhere.tif", SourceError, "{}/nowhere.tif: it does not exist"),
        ("{}/nowhere/*.tif", SourceError, "no file matches {}/nowhere/*.tif"),
        ("{}/*.jp2", SourceError, "no file matches {}/*.jp2"),
        ("{}/empty", SourceError, "no rasters (*.tif, *.tiff, *.jp2) in {}/empty"),
        ("{}", SceneError, "{}/median.tif: its name holds no date"),
        ("ftp://host/a.tif", SourceError, "ftp://host/a.tif: the URL scheme ftp:// is unknown; use gs://"),
        ("", ParameterError, "'' is not a source"),
        ([], SourceError, "the source is an empty list"),
        (iter(()), SourceError, "the source is an empty list"),
        ([""], ParameterError, "'' is not a source"),
        (None, ParameterError, "the source is None"),
        (7, ParameterError, "the source is 7"),
        ([None], ParameterError, "None is not a source"),
        ([7], ParameterError, "7 is not a source"),
    ],
)
def test_sources_that_give_nothing(tmp_path, source, error, what):
    fill(tmp_path, "median.tif", "empty/readme.txt")
    with pytest.raises(error) as caught:
        find_scenes(source.format(tmp_path) if isinstance(source, str) else source)
    assert what.format(tmp_path) in str(caught.value)


@pytest.fixture
def powerless():
    """Give up root's right to read everything."""
    user = os.geteuid()
    os.seteuid(65534 if user == 0 else user)
    yield
    os.seteuid(user)


def test_a_directory_that_may_not_be_read(folder, powerless):
    # pytest's own directories are closed to other users.
    if os.access(folder, os.R_OK, effective_ids=True):
        folder.chmod(0)
    with pytest.raises(SourceError, match=f"{folder}: access is denied"):
        find_scenes(folder)


def test_two_files_of_one_asset_are_both_named(tmp_path):
    fill(tmp_path, f"a/{FIRST}_TCI.tif", f"b/{FIRST}_TCI.tif")
    with pytest.raises(SceneError) as caught:
        find_scenes([tmp_path / "a", tmp_path / "b"])
    for part in (f"{tmp_path}/a/{FIRST}_TCI.tif", f"{tmp_path}/b/{FIRST}_TCI.tif", f"the asset TCI of scene {FIRST}"):
        assert part in str(caught.value)
    assert caught.value.scene == FIRST


@pytest.mark.parametrize("other", ["TCI.jp2", "TCI_10m.tif"])
def test_copies_of_an_asset_are_not_chosen_between(tmp_path, other):
    fill(tmp_path, f"{FIRST}_TCI.tif", f"{FIRST}_{other}")
    with pytest.raises(SceneError, match="are both the asset TCI"):
        find_scenes(tmp_path)


def test_one_name_with_two_times_is_refused():
    urls = [f"gs://b/{FIRST}_{asset}.tif" for asset in ("TCI", "SCL")]
    with pytest.raises(SceneError, match="but not by time") as caught:
        find_scenes(urls, times=["2023-07-04", "2023-07-05"])
    assert all(url in str(caught.value) for url in urls)


def test_scene_ids_are_unique():
    scene = Scene(FIRST, dt.datetime(2023, 7, 4, tzinfo=dt.UTC), (Asset("data", "/a.tif"),))
    with pytest.raises(SceneError, match=f"scene {FIRST} is given twice"):
        find_scenes([scene, f"gs://b/{FIRST}_TCI.tif"])


def test_times_of_the_wrong_length_or_kind(folder):
    with pytest.raises(ParameterError, match="times has 1 entries for 3 files"):
        find_scenes(folder, times=["2023-07-04"])
    with pytest.raises(ParameterError, match="'July' is not a date"):
        find_scenes(folder, times=["July"] * 3)


def test_a_malformed_datetime_is_told_before_anything_is_listed(tmp_path):
    with pytest.raises(ParameterError, match="datetime 'summer' is not a date or an interval"):
        find_scenes(tmp_path / "nowhere", datetime="summer")


def test_nothing_in_the_range_tells_the_range_there_is(folder):
    with pytest.raises(
        SourceError, match=r"none of the 2 scenes is within 2022-01-01/2022-12-31: .* 2023-07-04 to 2023-07-09"
    ):
        find_scenes(folder, datetime="2022")


def test_216_names_take_less_than_50_ms():
    urls = [f"gs://b/T31TCJ_2023{month:02}{day:02}T104629_TCI.tif" for month in range(1, 13) for day in range(1, 19)]
    seconds = []
    for _ in range(5):
        start = time.process_time()
        assert len(find_scenes(urls, datetime="2023")) == 216
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.05


# --- real servers ---------------------------------------------------------------------------------------------------


def stored(server):
    """Fill a server with the scenes of `folder`, and with a layout of folders."""
    for name in (f"{SECOND}_TCI.tif", f"{SECOND}_SCL_20m.jp2", f"{FIRST}_TCI.tif", "readme.txt"):
        server.put(f"bucket/t31tcj/{name}")
    for name in ("TCI.tif", "B04.tif", "thumbnail.jpg"):
        server.put(f"bucket/deep/31/T/CJ/2023/7/S2B_31TCJ_20230709_0_L2A/{name}")
    server.put(f"bucket/not-rasters/{FIRST}.txt")
    server.put(f"bucket/été 1/{FIRST} (copy) 1+1_TCI.tif")
    return server


@pytest.fixture(scope="module", params=[*BUCKETS, http_server])
def server(request):
    """Each kind of server, filled."""
    with request.param() as running:
        yield stored(running)


def test_public_servers_are_listed_without_credentials(server):
    with server.selected():
        first, second = find_scenes(server.url("bucket/t31tcj/"))
        assert first.assets[0].href == server.url(f"bucket/t31tcj/{FIRST}_TCI.tif")
        assert (second.id, names_of(second)) == (SECOND, ["SCL", "TCI"])
        assert find_scenes(server.url("bucket/t31tcj")) == (first, second)


def test_globs_of_urls(server):
    with server.selected():
        assert files_of(find_scenes(server.url("bucket/t31tcj/*_TCI.tif"))) == [f"{FIRST}_TCI.tif", f"{SECOND}_TCI.tif"]
        (scene,) = find_scenes(server.url("bucket/deep/31/T/CJ/2023/*/S2B_*/TCI.tif"))
        assert (scene.id, names_of(scene)) == ("S2B_31TCJ_20230709_0_L2A", ["TCI"])


def test_names_with_spaces_and_accents_lead_back_to_their_objects(server):
    from s2composite.storage.files import filesystem

    with server.selected():
        (scene,) = find_scenes(server.url("bucket/été 1/"))
        assert scene.id == f"{FIRST} (copy) 1+1"
        fs, path = filesystem(scene.assets[0].href)
        assert fs.cat_file(path) == b"-"


def test_prefixes_and_folders_of_buckets(server):
    if server.scheme == "http":
        pytest.skip("web servers have neither")
    with server.selected():
        assert ids(find_scenes(server.url(f"bucket/t31tcj/{SECOND[:12]}"))) == [FIRST, SECOND]
        assert ids(find_scenes(server.url(f"bucket/t31tcj/{SECOND}"))) == [SECOND]
        (scene,) = find_scenes(server.url("bucket/deep"))
        assert names_of(scene) == ["B04", "TCI"]


def test_a_file_url_is_taken_as_it_is_without_asking(server):
    with server.selected():
        asked = len(server.requests)
        (scene,) = find_scenes(server.url(f"nobucket/{FIRST}_TCI.tif"))
        assert scene.assets[0].href == server.url(f"nobucket/{FIRST}_TCI.tif")
        assert len(server.requests) == asked


def test_listings_are_fresh(server):
    with server.selected():
        url = server.put(f"bucket/growing{os.getpid()}/{FIRST}_TCI.tif").rpartition("/")[0]
        assert ids(find_scenes(url)) == [FIRST]
        server.put(f"bucket/growing{os.getpid()}/{SECOND}_TCI.tif")
        assert ids(find_scenes(url)) == [FIRST, SECOND]


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("bucket/nowhere/", "bucket/nowhere/: it does not exist"),
        ("nobucket/", "nobucket/: it does not exist"),
        ("bucket/t31tcj/*.tiff", "no file matches {}bucket/t31tcj/*.tiff"),
        ("bucket/not-rasters/", "bucket/not-rasters/"),
    ],
)
def test_nothing_on_a_server(server, place, what):
    with server.selected(), pytest.raises(SourceError) as caught:
        find_scenes(server.url(place))
    assert what.format(server.url()) in str(caught.value)


def test_threads_and_fresh_processes_list_as_well(server):
    url = server.url("bucket/t31tcj/")
    code = f"from s2composite.scenes.find import find_scenes; print(len(find_scenes({url!r})))"
    with server.selected():
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(find_scenes, [url] * 8))
        assert all(ids(scenes) == [FIRST, SECOND] for scenes in found)
        out = subprocess.run(
            [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=200, check=True
        )
    assert (out.stdout, out.stderr) == ("2\n", "")


def test_216_scenes_on_a_web_page_take_one_request():
    with http_server() as running, running.selected():
        for number in range(216):
            day = dt.date(2023, 1, 1) + dt.timedelta(days=number)
            running.put(f"t31tcj/T31TCJ_{day:%Y%m%d}T104629_TCI.tif")
        assert len(find_scenes(running.url("t31tcj/"))) == 216
        assert len(running.requests) == 1


def test_a_web_page_without_links_to_rasters():
    with http_server() as running, running.selected():
        running.put("deep/below/a_20230709.tif")
        with pytest.raises(SourceError, match="shows no links to rasters"):
            find_scenes(running.url("deep/"))


def always(status):
    """Refuse each request with a status."""
    return lambda _path, _number: status


@pytest.mark.parametrize(("status", "place"), [(401, "bucket/t31tcj/"), (403, "bucket/t31tcj/"), (403, "bucket/*.tif")])
@pytest.mark.parametrize(
    ("scheme", "cure"),
    [("s3", "aws configure"), ("gs", "gcloud auth application-default login"), ("http", "netrc")],
)
def test_denied_access_says_so_and_how_to_get_it(scheme, cure, place, status, capfd):
    variable = {"s3": "AWS_ENDPOINT_URL", "gs": "STORAGE_EMULATOR_HOST", "http": "UNUSED"}[scheme]
    with (
        http_server(refuse=always(status)) as running,
        running.selected(**{variable: running.endpoint}),
    ):
        url = running.url(place) if scheme == "http" else f"{scheme}://{place}"
        with pytest.raises(SourceError) as caught:
            find_scenes(url)
    assert f"cannot list {url}: access is denied" in str(caught.value)
    assert cure in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.slow
def test_credentials_that_are_refused_are_not_blamed_on_their_absence(capfd):
    with s3_server() as running:
        running.put(f"bucket/{FIRST}_TCI.tif")
        with running.selected(**CREDENTIALS):
            assert ids(find_scenes("s3://bucket/")) == [FIRST]
            with locked(running), pytest.raises(SourceError, match="access is denied to the credentials in use"):
                find_scenes("s3://bucket/")
    assert "test" not in capfd.readouterr().err


def test_servers_that_do_not_answer_or_fail():
    with http_server(refuse=always(500)) as running, running.selected():
        with pytest.raises(SourceError, match="the server answers with HTTP status 500"):
            find_scenes(running.url("bucket/"))
        nobody = f"http://127.0.0.1:{free_port()}/bucket/"
        with pytest.raises(SourceError, match=f"cannot list {nobody}: .*[Cc]onnect"):
            find_scenes(nobody)


def test_secrets_in_urls_stay_out_of_errors():
    with http_server(refuse=always(500)) as running:
        url = running.url("bucket/?X-Amz-Signature=secret").replace("http://", "http://me:secret@")
        with running.selected(), pytest.raises(SourceError) as caught:
            find_scenes(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


# --- real imagery ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "scenes", "assets", "days"),
    [
        ("perito_moreno_rgb_west", 23, ["TCI"], ["2020-01-01", "2020-03-28"]),
        ("romania_s2_l2a_10m", 140, ["BOA", "SCL", "TCI"], ["2015-08-01", "2021-01-01"]),
        ("zagreb_t33twl_120m", 5, ["B02", "B03", "B04", "B08", "CLDPRB", "SCL", "TCI"], ["2023-08-10", "2023-08-20"]),
        ("exeter_s2_mixed_crs", 5, ["data"], ["2024-06-02", "2024-08-26"]),
    ],
)
def test_real_imagery_is_found(imagery, name, scenes, assets, days):
    found = find_scenes(imagery / name)
    assert len(found) == scenes
    assert all(names_of(scene) == assets for scene in found)
    assert [f"{found[i].time:%Y-%m-%d}" for i in (0, -1)] == days
