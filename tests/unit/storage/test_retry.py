"""What is written takes its name whole or not at all; what may pass is tried again, and no more often than asked."""

import asyncio
from pathlib import Path

import pytest

from s2composite.errors import AccessError, WriteError
from s2composite.storage.files import redact, replace_directory, replacing, storage_errors, write_atomic
from s2composite.storage.retry import AttemptError, Retry, backoff, retry_after, retrying, retrying_async

QUICK = Retry(attempts=3, first_wait=0.0)


def test_a_file_that_fails_leaves_what_was_there_and_nothing_else(tmp_path):
    path = tmp_path / "a.tif"
    write_atomic(path, b"old")
    seen = []

    def fail():
        with replacing(path) as unfinished:
            unfinished.write_bytes(b"half")
            seen.append(unfinished)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        fail()
    assert seen[0].suffix == ".tif"
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("existing", [True, False])
def test_a_directory_takes_the_name_of_another(tmp_path, existing):
    complete, target = tmp_path / "new", tmp_path / "store"
    complete.mkdir()
    (complete / "file").write_bytes(b"new")
    if existing:
        target.mkdir()
        (target / "other").write_bytes(b"old")
    replace_directory(complete, target)
    assert [p.name for p in target.iterdir()] == ["file"]
    assert list(tmp_path.iterdir()) == [target]


def test_a_directory_that_cannot_take_its_name_leaves_the_other(tmp_path):
    target = tmp_path / "store"
    target.mkdir()
    with pytest.raises(FileNotFoundError):
        replace_directory(tmp_path / "gone", target)
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("failures", [0, 2, 3])
def test_attempts_are_counted(failures):
    made = []

    def attempt():
        made.append(1)
        if len(made) <= failures:
            raise AttemptError("busy")
        return "done"

    async def attempt_later():
        return attempt()

    for call in (lambda: retrying(attempt, QUICK, "x"), lambda: asyncio.run(retrying_async(attempt_later, QUICK, "x"))):
        made.clear()
        if failures == QUICK.attempts:
            with pytest.raises(AttemptError) as caught:
                call()
            assert caught.value.attempts == 3
        else:
            assert call() == ("done", failures)


def test_what_does_not_pass_is_not_tried_again():
    made = []

    def attempt():
        made.append(1)
        raise AttemptError("gone", transient=False)

    with pytest.raises(AttemptError):
        retrying(attempt, QUICK, "x")
    assert made == [1]


def test_waits_double_up_to_a_limit():
    assert all(0.5 <= backoff(n, 1.0, 8.0) / min(8.0, 2 ** (n - 1)) <= 1.0 for n in range(1, 2000, 7))
    assert [retry_after(text) for text in ("7", " 7 ", "soon", "-1", "")] == [7.0, 7.0, 0.0, 0.0, 0.0]


def test_errors_of_storage_become_ours_without_secrets():
    url = "https://h/x?sig=1"
    with (
        pytest.raises(WriteError, match=r"^x: cannot be written: it does not exist$") as caught,
        storage_errors(WriteError, "x: cannot be written", url, path="x"),
    ):
        raise FileNotFoundError(2, "no", url)
    assert caught.value.__cause__ is None
    assert caught.value.path == "x"
    with pytest.raises(AccessError), storage_errors(WriteError, "x", str(Path("/x"))):
        raise AccessError("closed")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("(https://me:pw@h/a?sig=b)c), then", "(https://h/a then"),
        ("see (https://h/a?sig=b)", "see (https://h/a)"),
        ("gs://b/a?x#y and https://h/a#token", "gs://b/a and https://h/a"),
        ("what? basic abcdefghijk", "what? basic ..."),
    ],
)
def test_texts_lose_their_secrets(text, shown):
    assert redact(text) == shown
