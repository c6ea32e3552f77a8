"""Preloaded by a Dask worker: kills its process when it opens or names files of given names, one after the other.

What a test has to catch in time, if it watches from outside, happens here at the same place on every machine.
"""

import fnmatch
import os
import signal
import sys

waiting = os.environ["DIES_AT"].split(os.pathsep)
seen = set()


def watch(event, args):
    """Heed what the interpreter tells of itself before it does it, once for each name."""
    name = args[0] if event == "open" else args[1] if event == "os.rename" else None
    if isinstance(name, str | os.PathLike) and name not in seen and fnmatch.fnmatch(os.fspath(name), waiting[0]):
        seen.add(name)  # opening is told twice: by open(), then by what it calls
        waiting.pop(0)
        if not waiting:
            os.kill(os.getpid(), signal.SIGKILL)


sys.addaudithook(watch)
