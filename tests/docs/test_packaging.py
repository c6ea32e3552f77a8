"""What is installed and released: the archives, the extras, the conda recipe, the citation."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from importlib.metadata import requires
from pathlib import Path

import pytest
import rasterio
import yaml
from packaging.requirements import Requirement

import s2composite
from support import ROOT

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
EXTRAS = PROJECT["optional-dependencies"]
FOR_DEVELOPERS = {"test", "test-slow", "lint", "docs", "bench"}

RECIPE = ROOT / "examples" / "packaging" / "recipe.yaml"
CONDA_NAMES = {"dask": "dask-core", "isal": "python-isal", "matplotlib": "matplotlib-base"}
"""Packages that conda-forge has under another name, or without what only some users need."""

FIELDS = {
    "context": {"name", "version", "python_min"},
    "package": {"name", "version"},
    "source": {"url", "sha256"},
    "build": {"number", "noarch", "script", "python"},
    "requirements": {"host", "run"},
    "about": {"homepage", "repository", "documentation", "summary", "license", "license_file"},
    "extra": {"recipe-maintainers"},
}
"""Sections of the recipe that are mappings, and their fields."""


def oldest_python():
    return PROJECT["requires-python"].removeprefix(">=")


# --- The project's own file ---


def test_the_pythons_that_are_named_begin_with_the_oldest_that_is_allowed():
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert named[0] == oldest_python() == PYPROJECT["tool"]["mypy"]["python_version"]
    assert named == [f"3.{minor}" for minor in range(11, 11 + len(named))]
    assert PYPROJECT["tool"]["ruff"]["target-version"] == f"py{oldest_python().replace('.', '')}"


def test_test_slow_has_all_that_users_install():
    def names(extra):
        found = {Requirement(line) for line in EXTRAS[extra]}
        own = {nested for entry in found if entry.name == "s2composite" for nested in entry.extras}
        return {entry.name for entry in found} | {name for nested in own for name in names(nested)}

    users = {name for extra in EXTRAS.keys() - FOR_DEVELOPERS for name in names(extra)}
    assert users <= names("test-slow")
    assert names("test") <= names("test-slow")


def test_the_installation_page_has_every_extra():
    page = (ROOT / "docs" / "pages" / "guides" / "installation.md").read_text()
    named = {name for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == EXTRAS.keys() - FOR_DEVELOPERS


def test_what_developers_are_told_to_install_exists():
    told = re.findall(r"'\.\[([\w,-]+)\]'", (ROOT / "CONTRIBUTING.md").read_text())
    assert told
    assert {extra for group in told for extra in group.split(",")} <= EXTRAS.keys()


# --- The conda recipe ---


def recipe():
    """Return the recipe with the values of its context in their places, as rattler-build reads them."""
    text = RECIPE.read_text()
    context = yaml.safe_load(text)["context"]
    for name, value in context.items():
        text = text.replace(f"${{{{ {name} }}}}", str(value)).replace(f"${{{{ {name}[0] }}}}", str(value)[0])
    return yaml.safe_load(text)


def released():
    """Return this version; while it is in development, the last one that was released."""
    if not s2composite.__version__.endswith(".dev0"):
        return s2composite.__version__
    return re.search(r"^## (\d+\.\d+\.\d+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1]


def test_the_recipe_is_of_the_released_version():
    made = recipe()
    assert made["context"] == {"name": "s2composite", "version": released(), "python_min": oldest_python()}
    assert made["package"] == {"name": "s2composite", "version": released()}
    assert made["source"]["url"].endswith(f"/s2composite-{released()}.tar.gz")
    assert re.fullmatch(r"[0-9a-f]{64}", made["source"]["sha256"])


def test_the_recipe_requires_what_pip_installs():
    run = recipe()["requirements"]["run"]
    wanted, added = {f"python {PROJECT['requires-python']}"}, set()
    for line in PROJECT["dependencies"]:
        entry = Requirement(line)
        wanted.add(f"{CONDA_NAMES.get(entry.name, entry.name)} {entry.specifier}")
        for extra in entry.extras:  # conda has no extras: what they add is required itself
            conditional = [found for found in map(Requirement, requires(entry.name)) if found.marker]
            with_it = {found.name for found in conditional if found.marker.evaluate({"extra": extra})}
            added |= with_it - {found.name for found in conditional if found.marker.evaluate({"extra": ""})}
    assert wanted <= set(run)
    assert {line.partition(" ")[0] for line in set(run) - wanted} <= added
    assert added <= {line.partition(" ")[0] for line in run}
    assert recipe()["requirements"]["host"][2:] == [
        line.replace(">=", " >=") for line in PYPROJECT["build-system"]["requires"]
    ]


def test_the_recipe_says_what_the_project_says():
    made, (command, function) = recipe(), *PROJECT["scripts"].items()
    about, urls = made["about"], PROJECT["urls"]
    assert made["build"]["python"] == {"entry_points": [f"{command} = {function}"]}
    assert (about["summary"], about["license"]) == (PROJECT["description"], PROJECT["license"])
    assert [about["license_file"]] == PROJECT["license-files"]
    assert (about["homepage"], about["documentation"]) == (urls["Homepage"], urls["Documentation"])


def test_the_recipe_has_the_fields_of_its_format():
    made = recipe()
    assert {"schema_version", "tests", *FIELDS} == made.keys()
    assert made["schema_version"] == 1
    assert {name: set(made[name]) for name in FIELDS} == FIELDS
    python, commands = made["tests"]
    assert python["python"].keys() == {"imports", "pip_check", "python_version"}
    assert commands["script"]
    assert made["extra"]["recipe-maintainers"]


@pytest.mark.slow
def test_rattler_build_understands_the_recipe():
    rattler_build = pytest.importorskip("rattler_build", reason="needs pip install 's2composite[test-slow]'")
    text = RECIPE.read_text()
    with pytest.raises(rattler_build.RecipeParseError, match="noarc"):
        rattler_build.Stage0Recipe.from_yaml(text.replace("noarch:", "noarc:"))
    linux = rattler_build.RenderConfig(platform=rattler_build.PlatformConfig(target_platform="linux-64"))
    (variant,) = rattler_build.Stage0Recipe.from_yaml(text).render(rattler_build.VariantConfig(), linux)
    rendered = variant.recipe.to_dict()
    for section in ("package", "requirements"):
        assert rendered[section] == recipe()[section]


# --- The citation ---


def test_the_citation_is_of_the_released_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()  # required by the format
    assert cited["cff-version"] == "1.2.0"
    assert cited["authors"]
    assert cited["version"] == released()
    assert (cited["title"], cited["abstract"]) == (PROJECT["name"], PROJECT["description"])
    assert (cited["license"], cited["keywords"]) == (PROJECT["license"], PROJECT["keywords"])
    assert cited["url"] == cited["repository-code"] == PROJECT["urls"]["Homepage"]


@pytest.mark.slow
def test_the_citation_is_valid():
    pytest.importorskip("check_jsonschema", reason="needs pip install 's2composite[test-slow]'")
    schema = ["--builtin-schema", "vendor.citation-file-format"]
    command = [sys.executable, "-m", "check_jsonschema", *schema, "CITATION.cff"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# --- The archives ---


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """The source archive, the wheel that is built from it, and the wheel that is built from the checkout."""
    for module in ("build", "hatchling"):
        pytest.importorskip(module, reason="needs pip install 's2composite[test-slow]'")
    home = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--no-isolation", str(ROOT), "--outdir"]
    for command in ([*build, str(home)], [*build, str(home / "checkout"), "--wheel"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    (source,), (wheel,), (direct,) = home.glob("*.tar.gz"), home.glob("*.whl"), home.glob("checkout/*.whl")
    return source, wheel, direct


@pytest.mark.slow
def test_the_source_archive_has_the_project_and_nothing_else(archives):
    with tarfile.open(archives[0]) as archive:
        names = [name.partition("/")[2] for name in archive.getnames()]
    wanted = {
        ".ci", "ARCHITECTURE.md", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md",
        "pyproject.toml", "benchmarks", "docs", "examples", "notebooks", "s2composite", "tests",
    }  # fmt: skip
    assert {name.partition("/")[0] for name in names} - wanted <= {"PKG-INFO", ".gitignore"}
    assert wanted <= {name.partition("/")[0] for name in names}
    for name in ("s2composite/py.typed", "tests/conftest.py", "docs/pages/assets/demo.png"):
        assert name in names
    assert not [name for name in names if "__pycache__" in name or name.startswith("docs/site")]


@pytest.mark.slow
def test_a_wheel_from_the_source_archive_is_the_one_from_the_checkout(archives):
    _, built, direct = archives
    assert built.name == direct.name
    assert built.read_bytes() == direct.read_bytes()


@pytest.mark.slow
def test_the_wheel_installs_and_runs_the_demo(archives, tmp_path):
    """In an environment of its own, which finds the dependencies, and only them, in this one."""
    home = tmp_path / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*install, str(archives[1])], check=True)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    where = [str(python), "-c", "import s2composite; print(s2composite.__file__)"]
    imported = subprocess.run(where, cwd=tmp_path, env=env, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(imported) == packages / "s2composite" / "__init__.py"
    demo = [str(home / "bin" / "s2composite"), "demo", "--scenes", "4", "--size", "256"]
    done = subprocess.run(demo, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "demo" / "median.png").read_bytes().startswith(b"\x89PNG")
    with rasterio.open(tmp_path / "demo" / "median.tif") as made:
        assert made.shape == (256, 256)
        assert made.read().std() > 10
