"""The first hour in a notebook, in a real kernel: pictures, accessors, completion and help."""

import pytest

pytestmark = pytest.mark.slow

OPENED = """
import s2composite as s2c
cube = s2c.open_cube({scenes!r})
comp = s2c.composite(cube).compute()
months = s2c.composite(cube, period="month").compute()
"""

PICTURES = (
    "comp.plot()",
    "comp.plot.count()",
    "comp.plot.date()",
    "comp.plot.before_after(cube)",
    "comp.plot.timeline(cube)",
    "months.plot.periods()",
    "comp.preview(100).plot()",
    "comp.plot().figure",
)


def run(*cells):
    """Return the outputs of each cell."""
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
        metadata={"kernelspec": {"name": "python3", "display_name": ""}},
    )
    return [cell.outputs for cell in NotebookClient(notebook, timeout=200).execute().cells]


def pictures(outputs):
    return sum("image/png" in output.get("data", {}) for output in outputs)


@pytest.fixture(scope="module")
def opened(scenes_dir):
    return OPENED.format(scenes=str(scenes_dir))


def test_every_picture_is_shown_once_wherever_its_call_stands(opened, tmp_path):
    file = str(tmp_path / "kept.png")
    cells = [cell for call in PICTURES for cell in (call, f"{call}\nNone", f"kept = {call}")]
    more = [
        "figure = months.plot.periods()",
        "figure",  # again, in a later cell
        "display(months.plot.periods())",
        "import matplotlib.pyplot as plt; months.plot.periods(); plt.show()",
        f"months.plot.periods().savefig({file!r})",
        "figure, axes = plt.subplots(1, 2); comp.plot(ax=axes[0]); comp.plot.count(ax=axes[1]); None",
        "comp.plot(); comp.plot.count()",
    ]
    _, *outputs = run(opened, *cells, *more)
    shown = dict(zip([*cells, *more], map(pictures, outputs), strict=True))
    assert shown == dict.fromkeys([*cells, *more[:-1]], 1) | {more[-1]: 2}
    assert (tmp_path / "kept.png").stat().st_size > 1000


def test_a_figure_stays_in_pyplot_where_nothing_flushes_it(opened):
    cells = [
        "import matplotlib; matplotlib.use('agg'); import matplotlib.pyplot as plt",
        "figure = months.plot.periods()",
        "display(figure); print(plt.fignum_exists(figure.number))",
    ]
    *_, last = run(opened, *cells)
    assert [output["text"] for output in last if output.output_type == "stream"] == ["True\n"]


def test_arrays_have_their_accessors_without_an_import(opened):
    said = """
arrays = [cube, comp["composite"], comp.dataset, months["count"], months.period("2023-06")["composite"]]
print({(array.rio.crs.to_epsg(), array.odc.crs.epsg) for array in arrays})
"""
    (_, (output,)) = run(opened, said)
    assert output["text"] == "{(32631, 32631)}\n"


@pytest.fixture(scope="module")
def kernel(opened):
    from jupyter_client.manager import start_new_kernel

    manager, client = start_new_kernel(kernel_name="python3")
    client.execute_interactive(opened, timeout=120)
    yield client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("comp.to_raster(", {"compress=", "level=", "overwrite=", "path="}),
        ("comp.to_zarr(", {"store=", "chunk=", "pyramid="}),
        ("comp.to_stac(", {"thumbnail=", "compress=", "derived_from="}),
        ("comp.to_thumbnail(", {"size=", "stretch="}),
        ("comp.explore(", {"basemap=", "stretch="}),
        ("comp.preview(", {"size="}),
        ("comp.plot(", {"bands=", "stretch=", "ax="}),
        ("comp.plot.before_after(", {"cube=", "scene="}),
        ("comp.plot.", {"count", "date", "before_after", "timeline", "periods"}),
    ],
)
def test_completion_and_help_show_what_can_be_given(kernel, typed, offered):
    completed = kernel.complete(typed, len(typed), reply=True, timeout=60)["content"]
    assert offered <= {match.rpartition(".")[2] for match in completed["matches"]}
    if not typed.endswith("("):
        return
    shown = kernel.inspect(typed, len(typed), reply=True, timeout=60)["content"]["data"]["text/plain"]
    assert "Signature:" in shown
    assert [name for name in offered if name.replace("=", ":") not in shown] == []
