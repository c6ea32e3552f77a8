"""Memory that windows reuse and free."""

import threading

import numpy as np
import pytest

from s2composite.reading import reader as scratch
from support.job_helpers import until


@pytest.fixture(autouse=True)
def kept(monkeypatch):
    """Memory is kept for the duration of a test, which starts with none."""
    monkeypatch.setattr(scratch, "_IDLE_SECONDS", 3600)
    scratch._cancel()
    scratch._release()
    yield
    scratch._cancel()
    scratch._release()


def test_memory_is_used_again_and_given_back(monkeypatch):
    with scratch.borrow(1000, np.dtype("uint16")) as first:
        assert (first.size, first.dtype) == (1000, np.uint16)
        address = first.ctypes.data
    assert scratch.held() == 2000
    monkeypatch.setattr(scratch, "_IDLE_SECONDS", 0.05)
    with scratch.borrow(300, np.dtype("float32")) as second:
        assert second.ctypes.data == address
        assert scratch.held() == 0
    until(lambda: scratch.held() == 0)


def test_borrowed_memory_is_never_shared():
    with scratch.borrow(100, np.dtype("uint8")) as a, scratch.borrow(100, np.dtype("uint8")) as b:
        assert not np.shares_memory(a, b)


def test_larger_windows_do_not_pile_up_memory():
    for size in range(1000, 100_000, 1000):
        with scratch.borrow(size, np.dtype("uint8")):
            pass
    assert scratch.held() == 99_000


def test_memory_comes_back_after_an_error():
    with pytest.raises(RuntimeError), scratch.borrow(10, np.dtype("uint8")):
        raise RuntimeError
    assert scratch.held() == 10


def test_many_threads_keep_their_values():
    wrong = []

    def work(value):
        for _ in range(200):
            with scratch.borrow(500, np.dtype("int64")) as memory:
                memory[:] = value
                if not (memory == value).all():
                    wrong.append(value)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert scratch.held() <= 8 * 500 * 8
