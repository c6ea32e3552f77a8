"""Names of products and files tell scene, asset, granule, time, orbit and baseline; unclear ones are refused."""

import datetime as dt
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from s2composite.errors import ParameterError, SceneError
from s2composite.scenes.names import ParsedName, asset_bands, parse_name

PRODUCT = "S2A_MSIL2A_20230709T104621_N0509_R051_T31TCJ_20230709T170403"
OLD_PRODUCT = "S2A_USER_PRD_MSIL2A_PDMC_20160319T020055_R051_V20150704T105014_20150704T105014"


def utc(*fields):
    return dt.datetime(*fields, tzinfo=dt.UTC)


def facts(scene_id, asset, granule, time, **more):
    unknown = {"orbit": None, "baseline": None, "platform": None}
    return ParsedName(scene_id=scene_id, asset=asset, granule=granule, time=time, **(unknown | more))


MOMENT, DAY = utc(2023, 7, 9, 10, 46, 29), utc(2023, 7, 9)
SENSED, ORBIT_51 = utc(2023, 7, 9, 10, 46, 21), {"orbit": 51, "baseline": "05.09", "platform": "S2A"}
OLD_SENSED = utc(2015, 7, 4, 10, 50, 14)
TILE, EARTH_SEARCH = "T31TCJ_20230709T104629", "S2B_31TCJ_20230709_0_L2A"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (f"{TILE}_TCI.tif", facts(TILE, "TCI", "31TCJ", MOMENT)),
        (f"{TILE}_TCI_10m.jp2", facts(TILE, "TCI", "31TCJ", MOMENT, resolution=10)),
        (f"{TILE}_B8A.tiff", facts(TILE, "B8A", "31TCJ", MOMENT)),
        (f"{TILE}_SCL_20m.jp2", facts(TILE, "SCL", "31TCJ", MOMENT, resolution=20)),
        (f"{TILE}_CLDPRB.TIF", facts(TILE, "CLDPRB", "31TCJ", MOMENT)),
        (f"{TILE}_b04.tif", facts(TILE, "B04", "31TCJ", MOMENT)),
        (f"{TILE}.tif", facts(TILE, "data", "31TCJ", MOMENT)),
        (f"L2A_{TILE}_TCI_10m.jp2", facts(f"L2A_{TILE}", "TCI", "31TCJ", MOMENT, resolution=10)),
        (f"L1C_{TILE}_B02.jp2", facts(f"L1C_{TILE}", "B02", "31TCJ", MOMENT)),
        (PRODUCT, facts(PRODUCT, "data", "31TCJ", SENSED, **ORBIT_51)),
        (f"{PRODUCT}.SAFE", facts(PRODUCT, "data", "31TCJ", SENSED, **ORBIT_51)),
        (f"/a/{PRODUCT}.SAFE/", facts(PRODUCT, "data", "31TCJ", SENSED, **ORBIT_51)),
        (f"{PRODUCT}_TCI.tif", facts(PRODUCT, "TCI", "31TCJ", SENSED, **ORBIT_51)),
        (
            "S2B_MSIL1C_20230709T104621_R051_T01CCV_20240101T000000",  # Planetary Computer: no baseline
            facts(
                "S2B_MSIL1C_20230709T104621_R051_T01CCV_20240101T000000",
                "data", "01CCV", SENSED, orbit=51, platform="S2B",
            ),
        ),
        (f"{OLD_PRODUCT}.SAFE", facts(OLD_PRODUCT, "data", None, OLD_SENSED, orbit=51, platform="S2A")),
        (EARTH_SEARCH, facts(EARTH_SEARCH, "data", "31TCJ", DAY, platform="S2B")),
        (f"{EARTH_SEARCH}_visual.tif", facts(EARTH_SEARCH, "visual", "31TCJ", DAY, platform="S2B")),
        (f"31/T/CJ/7/{EARTH_SEARCH}/TCI.tif", facts(EARTH_SEARCH, "TCI", "31TCJ", DAY, platform="S2B")),
        (f"s3://b/31/T/CJ/7/{EARTH_SEARCH}/B04.tif", facts(EARTH_SEARCH, "B04", "31TCJ", DAY, platform="S2B")),
        (f"https://h/{EARTH_SEARCH}/B04.tif?s=20200101", facts(EARTH_SEARCH, "B04", "31TCJ", DAY, platform="S2B")),
        (f"S2B_{TILE}_L2A", facts(f"S2B_{TILE}_L2A", "data", "31TCJ", MOMENT, platform="S2B")),
        ("ROMANIA_20150801_TCI.tif", facts("ROMANIA_20150801", "TCI", None, utc(2015, 8, 1))),
        ("ROMANIA_20150801_BOA.tif", facts("ROMANIA_20150801", "BOA", None, utc(2015, 8, 1))),
        ("PMORENO_20200220_TCI_ycbcr.tif", facts("PMORENO_20200220_TCI_ycbcr", "data", None, utc(2020, 2, 20))),
        (
            "exe_2024-06-02_12-21-19_EPSG27700.tif",
            facts("exe_2024-06-02_12-21-19_EPSG27700", "data", None, utc(2024, 6, 2, 12, 21, 19)),
        ),
        ("2023-07-09T10:46:29.tif", facts("2023-07-09T10:46:29", "data", None, MOMENT)),
        ("20230709104629.tif", facts("20230709104629", "data", None, MOMENT)),
        ("20230709_TCI.tif", facts("20230709", "TCI", None, DAY)),
        (
            "SENTINEL2A_20230709-104629-123_L2A_T31TCJ_C_V3-1_FRE_B4.tif",
            facts("SENTINEL2A_20230709-104629-123_L2A_T31TCJ_C_V3-1_FRE", "B4", "31TCJ", MOMENT, platform="S2A"),
        ),
        # The same day twice is no contradiction; sensing starts first.
        ("20230709T104631_20230709T104629_a.tif", facts("20230709T104631_20230709T104629_a", "data", None, MOMENT)),
        # One date and a number that looks like one but is none.
        ("order20239999_20230709.tif", facts("order20239999_20230709", "data", None, DAY)),
        # 99 is no hour: the day stands, the digits after it mean something else.
        ("20230709T994629.tif", facts("20230709T994629", "data", None, DAY)),
    ],
)  # fmt: skip
def test_common_names(name, expected):
    assert parse_name(name) == expected


def test_a_files_product_folder_adds_what_its_own_name_lacks():
    inside = "GRANULE/L2A_T31TCJ_A042011_20230709T105026/IMG_DATA/R10m/T31TCJ_20230709T104621_TCI_10m.jp2"
    found = parse_name(f"/data/{PRODUCT}.SAFE/{inside}")
    assert (found.scene_id, found.asset, found.resolution) == ("T31TCJ_20230709T104621", "TCI", 10)
    assert (found.orbit, found.baseline, found.platform) == (51, "05.09", "S2A")


def test_a_folder_of_another_product_adds_nothing():
    assert parse_name(f"/data/{PRODUCT}.SAFE/T32ULC_20230709T104621_TCI.jp2").orbit is None
    assert parse_name(f"/data/{PRODUCT}.SAFE/T31TCJ_20230710T104621_TCI.jp2").orbit is None


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("median.tif", "no date"),
        ("TCI.tif", "no date"),
        ("/data/TCI.tif", "no date"),
        ("", "no date"),
        ("T31TCJ_20231345T104629_TCI.tif", "20231345 in its name is not a date"),
        ("T31TCJ_20230230_TCI.tif", "20230230 in its name is not a date"),
        ("2023-02-30.tif", "20230230 in its name is not a date"),
        ("composite_20230101_20230331.tif", "several dates (2023-01-01 and 2023-03-31)"),
        ("2024-06-02-2024-06-05.tif", "several dates (2024-06-02 and 2024-06-05)"),
        ("1234567890.tif", "no date"),
        ("120230709.tif", "no date"),
        ("S2A_OPER_MSI_L1C_TL_EPA__20160605T113933_A000734_T31TCJ_B04.jp2", "when the file was made"),
    ],
)
def test_names_without_one_date_are_named_with_the_ways_out(name, what):
    with pytest.raises(SceneError) as caught:
        parse_name(name)
    message = str(caught.value)
    assert message.startswith(f"{name}: ")
    assert what in message
    assert all(way in message for way in ("rename", "pattern=", "times="))


def test_signatures_and_passwords_of_urls_stay_out_of_messages():
    with pytest.raises(SceneError) as caught:
        parse_name("https://me:secret@host/TCI.tif?sig=abc")
    assert "https://host/TCI.tif" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_a_known_time_makes_dates_in_the_name_unnecessary():
    found = parse_name("/data/T31TCJ_first_TCI.tif", time=MOMENT)
    assert (found.scene_id, found.asset, found.granule, found.time) == ("T31TCJ_first", "TCI", "31TCJ", MOMENT)
    assert parse_name("a_20200101_20210101.tif", time=MOMENT).time == MOMENT


# --- pattern --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("img_9_7_2023.tif", r"_(?P<day>\d+)_(?P<month>\d+)_(?P<year>\d{4})", ("img_9_7_2023", "data", DAY)),
        ("a_20200101_20230709.tif", r"_(?P<date>\d{8})\.tif", ("a_20200101_20230709", "data", DAY)),
        ("a_2023-7-9.tif", r"(?P<date>\d{4}-\d+-\d+)", ("a_2023-7-9", "data", DAY)),
        ("a_2023190.tif", r"(?P<date>\d{7})", ("a_2023190", "data", DAY)),
        (
            "HLS.S30.T31TCJ.2023190T104629.v2.0.B04.tif",
            r"\.(?P<date>\d{7})T(?P<time>\d{6})",
            ("HLS.S30.T31TCJ.2023190T104629.v2.0", "B04", MOMENT),
        ),
        (
            "a_09072023_10h46m29.tif",
            r"(?P<day>..)(?P<month>..)(?P<year>\d{4})_(?P<hour>..)h(?P<minute>..)m(?P<second>\d\d)",
            ("a_09072023_10h46m29", "data", MOMENT),
        ),
        ("nir_20230709_x.tif", r"(?P<asset>\w+?)_(?P<date>\d{8})", ("20230709_x", "nir", DAY)),
        ("site7_20230709_red.tif", r"(?P<id>site\d_(?P<date>\d{8}))_(?P<asset>\w+)", ("site7_20230709", "red", DAY)),
        (
            "tiles/31/T/CJ/2023/7/9/0/TCI.tif",
            r"/(?P<year>\d{4})/(?P<month>\d+)/(?P<day>\d+)/\d/",
            ("scene_20230709T000000", "TCI", DAY),
        ),
    ],
)  # fmt: skip
def test_patterns(name, pattern, expected):
    found = parse_name(name, pattern)
    assert (found.scene_id, found.asset, found.time) == expected


def test_a_pattern_gives_granule_orbit_baseline_and_platform():
    pattern = r"(?P<platform>S2\w)-(?P<granule>\w{6})-(?P<date>\d{8})-(?P<orbit>R\d+)-(?P<baseline>N\d{4})"
    found = parse_name("S2C-t31TCJ-20230709-R051-N0510.tif", pattern)
    assert (found.platform, found.granule, found.orbit, found.baseline) == ("S2C", "31TCJ", 51, "05.10")


@pytest.mark.parametrize(
    ("pattern", "error", "what"),
    [
        (r"(\d{8}", ParameterError, "not a regular expression"),
        (r"(\d{8})", ParameterError, "no groups that give a date"),
        (r"(?P<year>\d{4})(?P<month>\d\d)", ParameterError, "no groups that give a date"),
        (r"x(?P<date>\d{8})", SceneError, "a_20239999.tif: pattern"),
        (r"(?P<date>\d{8})", SceneError, "a_20239999.tif: the pattern finds '20239999'"),
        (r"(?P<date>[a-z])", SceneError, "a_20239999.tif: the pattern finds 'a'"),
        (r"(?P<year>\d{4})(?P<month>\d\d)?(?P<day>x)?", SceneError, "a_20239999.tif: the pattern finds"),
        (r"(?P<orbit>a)_(?P<date>2)?", SceneError, "a_20239999.tif: "),
    ],
)
def test_bad_patterns(pattern, error, what):
    with pytest.raises(error, match=re.escape(what)):
        parse_name("a_20239999.tif", pattern)


def test_an_orbit_that_is_no_number_is_refused():
    with pytest.raises(SceneError, match="orbit finds 'x'"):
        parse_name("x_20230709.tif", r"(?P<orbit>x)_(?P<date>\d{8})")


# --- all names ------------------------------------------------------------------------------------------------------

times = st.integers(0, 35 * 365 * 86400).map(lambda seconds: utc(2015, 1, 1) + dt.timedelta(seconds=seconds))
granules = st.tuples(
    st.integers(1, 60).map("{:02d}".format),
    st.sampled_from("CDEFGHJKLMNPQRSTUVWX"),
    st.sampled_from("ABCDEFGHJKLMNPQRSTUVWXYZ"),
    st.sampled_from("ABCDEFGHJKLMNPQRSTUV"),
).map("".join)
platforms = st.sampled_from(["S2A", "S2B", "S2C"])
bands = st.sampled_from(["TCI", "SCL", "CLDPRB", "AOT", "WVP", "B8A", *(f"B{i:02d}" for i in range(1, 13))])
folders = st.sampled_from(["", "/data/", "gs://bucket/2023/", "https://host/a%20b/", "C:\\data\\"])


@given(
    folders, st.tuples(granules, times, bands), st.sampled_from([None, 10, 20, 60]), st.sampled_from([".tif", ".JP2"])
)
def test_file_names_come_back(folder, scene, resolution, extension):
    granule, time, band = scene
    stem = f"T{granule}_{time:%Y%m%dT%H%M%S}"
    suffix = f"_{resolution}m" if resolution else ""
    found = parse_name(f"{folder}{stem}_{band}{suffix}{extension}")
    assert found == facts(stem, band, granule, time, resolution=resolution)


@given(
    folders,
    st.tuples(platforms, granules, times, times),
    st.tuples(st.sampled_from(["1C", "2A"]), st.integers(0, 9999), st.integers(1, 143)),
    st.none() | bands,
)
@example("", ("S2A", "31TCJ", utc(2023, 7, 9), utc(2023, 7, 9)), ("2A", 509, 51), None)
def test_product_names_come_back(folder, acquisition, processing, band):
    platform, granule, sensed, made = acquisition
    level, baseline, orbit = processing
    first, last = f"{platform}_MSIL{level}_{sensed:%Y%m%dT%H%M%S}", f"T{granule}_{made:%Y%m%dT%H%M%S}"
    product = f"{first}_N{baseline:04d}_R{orbit:03d}_{last}"
    number = f"{baseline // 100:02d}.{baseline % 100:02d}"
    found = parse_name(f"{folder}{product}_{band}.tif" if band else f"{folder}{product}.SAFE")
    assert found == facts(product, band or "data", granule, sensed, orbit=orbit, baseline=number, platform=platform)


@given(platforms, granules, times, st.integers(0, 9), bands)
def test_earth_search_names_come_back(platform, granule, time, number, band):
    item = f"{platform}_{granule}_{time:%Y%m%d}_{number}_L2A"
    day = time.replace(hour=0, minute=0, second=0)
    for name in (f"x/{item}/{band}.tif", f"{item}_{band}.tif"):
        assert parse_name(name) == facts(item, band, granule, day, platform=platform)


words = st.text(
    st.characters(codec="utf-8", exclude_categories=["Nd", "Cs"], exclude_characters="/\\?#:-.%"), max_size=12
)


@given(words, times, words, st.sampled_from(["%Y%m%d", "%Y%m%dT%H%M%S", "%Y-%m-%d", "%Y-%m-%dT%H-%M-%S"]))
def test_one_date_among_any_words_is_found(before, time, after, form):
    found = parse_name(f"{before}_{time:{form}}_{after}.tif")
    assert found.time == (time if "%H" in form else time.replace(hour=0, minute=0, second=0))


def facts_or_message(text):
    try:
        return parse_name(text)
    except SceneError as error:
        return str(error)


@given(st.text(max_size=60) | st.from_regex(r"(20\d{6}|T31TCJ|_|S2A|-|\d|R051|/|\.tif){0,12}", fullmatch=True))
@example("\u0662\u0660\u0662\u0663\u0660\u0667\u0660\u0669.tif")  # 20230709 in Arabic digits
@example("http://[::1/20230709.tif")
@example("nix://20230709.tif")
def test_any_text_gives_facts_or_one_clear_error(text):
    found = facts_or_message(text)
    if isinstance(found, str):
        assert "times=" in found
    else:
        assert found.scene_id
        assert found.asset
        assert found.time.tzinfo is dt.UTC


@pytest.mark.parametrize(
    ("asset", "expected"),
    [
        ("TCI", ("red", "green", "blue")),
        ("visual", ("red", "green", "blue")),
        ("B04", ("B04",)),
        ("B4", ("B4",)),
        ("SCL", ("SCL",)),
        ("nir", ("nir",)),
        ("BOA", ()),
        ("PVI", ()),
        ("data", ()),
        ("anything", ()),
    ],
)
def test_bands_that_an_asset_implies(asset, expected):
    assert asset_bands(asset) == expected
