"""Code blocks of Markdown pages: found, and run as their reader would run them."""

import contextlib
import doctest
import io
import os
import re
import shlex
import signal
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path

import yaml

from s2composite.cli import main
from s2composite.clusters.connect import read_cluster
from s2composite.jobs.schema import load_job
from support import ROOT

FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w+)(?P<rest>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
NOT_RUN = re.compile(r"<!-- not run: (?P<reason>\S.*\S) -->\s*\Z")
RUNS = ("run", "resume", "retry")
"""Commands that take a cluster."""

SHELLS = ("bash", "console")
KEPT = "what is done is kept"
"""What is said where windows are left, with exit code 1."""

FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str
    not_run: str | None

    @property
    def where(self):
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def pages():
    return [ROOT / "README.md", *sorted((ROOT / "docs" / "pages").rglob("*.md"))]


def blocks(page):
    """Return the blocks of a page in order; those in `text` are not code."""
    content = page.read_text()
    found = []
    for match in FENCE.finditer(content):
        if match["language"] == "text":
            continue
        title = re.search(r'title="([^"]+)"', match["rest"])
        why = NOT_RUN.search(content[: match.start()])
        lines = [line.removeprefix(match["indent"]) for line in match["text"].splitlines()]
        line = content[: match.start()].count("\n") + 1
        reason = why["reason"] if why else None
        found.append(Block(page, line, match["language"], title and title[1], "\n".join(lines) + "\n", reason))
    return found


class Reader:
    """Someone who goes through a page from top to bottom, in the current directory.

    Jobs run on the cluster at `address` instead of one of their own; `instead` has texts in the place of addresses that
    only exist elsewhere.
    """

    def __init__(self, address, instead):
        self.address, self.instead = address, instead
        self.names = {"__name__": "__main__"}
        self.jobs = {}

    def read(self, block):
        text = block.text
        for there, here in self.instead.items():
            text = text.replace(there, here)
        getattr(self, f"_{block.language}")(block, text)

    def finish(self):
        """Run the jobs that no command has run."""
        for name, where in list(self.jobs.items()):
            self._command(f"s2composite run {name}", "", where)

    def _python(self, block, text):
        code = compile("\n" * block.line + text, str(block.page), "exec")
        exec(code, self.names)

    def _pycon(self, block, text):
        test = doctest.DocTestParser().get_doctest(text, self.names, block.where, str(block.page), block.line)
        runner, said = doctest.DocTestRunner(optionflags=FLAGS), io.StringIO()
        runner.run(test, out=said.write, clear_globs=False)
        self.names.update(test.globs)
        assert runner.summarize(verbose=False).failed == 0, said.getvalue()

    def _yaml(self, block, text):
        assert block.title, f"{block.where}: give it a title, the name of its file"
        content = yaml.safe_load(text)
        Path(block.title).parent.mkdir(parents=True, exist_ok=True)
        Path(block.title).write_text(text)
        if "source" in content:
            load_job(block.title)
            self.jobs[block.title] = block.where
        else:
            read_cluster(block.title)

    def _json(self, block, text):
        assert block.title, f"{block.where}: give it a title, the name of its file"
        Path(block.title).write_text(text)

    def _bash(self, block, text):
        for line in text.replace("\\\n", " ").splitlines():
            self._command(line, None, block.where)

    def _console(self, block, text):
        for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
            line, _, expected = part.partition("\n")
            self._command(line, expected, block.where)

    def _command(self, line, expected, where):
        """Run a line; what it prints is compared, and without an error in it the exit code must be 0."""
        for part in line.split(" && "):
            words = shlex.split(part, comments=True)
            if not words:
                continue
            name = words[0].rpartition("/")[2]
            if name == "s2composite":
                self._s2composite(words[1:], expected, f"{where}: {line}")
            elif name == "pip":
                check_extras(words)
            elif words[1:3] != ["-m", "venv"]:
                assert in_this_order(line.split(" && ")), f"{where}: nobody runs {line!r}"

    def _s2composite(self, words, expected, where):
        for job in set(words) & set(self.jobs):
            if words[0] in RUNS:
                self.jobs.pop(job)
        words = [*words, *self._instead_of(words)]
        code, said = shell([self.address if word == "local" else word for word in words])
        lines = (expected or "").splitlines()
        wanted = 2 if any(line.startswith("error:") for line in lines) else 1 if KEPT in (expected or "") else 0
        assert code == wanted, f"{where}\n{said}"
        if expected:
            same = doctest.OutputChecker().check_output(expected, said, FLAGS)
            assert same, f"{where}\n--- expected\n{expected}--- printed\n{said}"

    def _instead_of(self, words):
        """Return options that make a command quicker than its reader's."""
        if words[0] in RUNS:
            return ["-s", f"cluster={self.address}"]
        return ["--scenes", "4", "--size", "128"] if words[0] == "demo" else []


def shell(words):
    """Run the command line in this process; return its exit code and what it has printed."""
    said, before, interrupt = io.StringIO(), sys.argv, signal.getsignal(signal.SIGINT)
    sys.argv = ["s2composite", *words]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main()
    except SystemExit as end:
        return end.code or 0, said.getvalue()
    finally:
        sys.argv = before
        signal.signal(signal.SIGINT, interrupt)  # the command changes what Ctrl-C does in its process
    return 0, said.getvalue()


def in_this_order(commands):
    """Return whether `.ci/run` runs these commands, each as it is written, one after the other."""
    script, place = (ROOT / ".ci" / "run").read_text(), 0
    for command in commands:
        match = re.compile(rf"(?:^|&& ){re.escape(command)}(?:$| &&| \|\|)", re.MULTILINE).search(script, place)
        if match is None:
            return False
        place = match.start() + 1
    return True


def check_extras(words):
    """Fail if a package is to be installed with an extra that it has not."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    asked = re.findall(r"\[([\w,-]+)\]", " ".join(words))
    assert {extra for group in asked for extra in group.split(",")} <= set(known)


@contextlib.contextmanager
def directory(path):
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)
