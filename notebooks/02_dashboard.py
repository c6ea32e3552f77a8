# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The dashboard: what the workers do, and what to change
#
# When a computation takes long there are two questions: is it working, and could it work faster? Dask answers both on a page
# of its own, the *dashboard*. This notebook says what is to be seen there while a season is composited, and then changes the
# two things that matter, the size of the windows and the number of workers, to see what they do.

# %% tags=["parameters"]
DIRECTORY = "dashboard"  # where scenes go
SCENES = 12  # acquisitions
SIZE = 1024  # rows and columns of 10 m
WORKERS = 2  # processes

# %%
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import s2composite as s2c
from distributed import get_task_stream, performance_report
from s2composite.demo import make_scenes

files = make_scenes(Path(DIRECTORY) / "scenes", scenes=SCENES, size=SIZE, distinct=8)
client = s2c.connect("local", workers=WORKERS, threads=1, memory="2GB", dashboard=":0")

# %% [markdown]
# The line above has a link. Open it in a second window and keep it there. While 216 scenes of 4096 x 4096 pixels are
# composited it looks like this:
#
# ![The status page of the dashboard](../docs/pages/assets/dashboard_status.png)
#
# - **Task stream**, the large one: a row for each thread of each worker, a bar for each task, time to the right. Colour is
#   work, white is waiting, red is data that travels from one worker to another. This one is as it should be: hardly any
#   white, and red only at the very beginning, when the list of scenes is handed to a worker.
# - **Bytes stored per worker**: memory. Dark is what Dask holds, light is what it does not know about. The axis ends at the
#   worker's limit; a bar that turns orange is near it, and a worker that reaches it is restarted.
# - **Progress**: tasks that are done, in memory, waiting.
#
# ## What is a task?
#
# The unit of work is a *window*: some hundred pixels on a side, of **all** scenes. One task reads it, masks it, takes the
# median, and forgets the observations; only the result leaves the task. So there are few tasks, and they are large.

# %%
cube = s2c.open_cube(files)
comp = s2c.composite(cube)
windows = cube.data.numblocks[2] * cube.data.numblocks[3]
print(f"{SCENES} scenes, windows of {cube.data.chunksize[2]} x {cube.data.chunksize[3]} pixels: {windows} of them")
print(f"observations of a window: {np.prod(cube.data.chunksize) / 1e6:.0f} MB, tasks in all: {len(comp.dataset.__dask_graph__())}")

# %% [markdown]
# The size of the windows was chosen for us: as large as a quarter of the memory of one thread allows, in whole tiles of the
# files. It is why neither the number of scenes nor the size of the area can fill the memory of a worker.
#
# ## Our own task stream
#
# What the dashboard draws can be had as data. We composite with windows of 512 pixels, so that there are a few, and draw the
# stream ourselves. The very first tasks take longer: they compile, once for each worker.


# %%
def draw_stream(tasks, title):
    """Draw the tasks of each worker as bars over time."""
    workers = sorted({task["worker"] for task in tasks})
    begin = min(span["start"] for task in tasks for span in task["startstops"])
    colours = {"compute": "tab:green", "transfer": "tab:red"}
    figure, ax = plt.subplots(figsize=(12, 0.6 * len(workers) + 1), layout="constrained")
    for task in tasks:
        for span in task["startstops"]:
            start, length = span["start"] - begin, span["stop"] - span["start"]
            ax.barh(workers.index(task["worker"]), length, left=start, color=colours.get(span["action"], "0.5"), edgecolor="white")
    ax.set(title=title, xlabel="seconds", yticks=range(len(workers)), yticklabels=[f"worker {i + 1}" for i in range(len(workers))])


def composite_with(chunks):
    """Composite with windows of some size; return the tasks and the seconds."""
    lazy = s2c.composite(s2c.open_cube(files, chunks=chunks))
    start = time.perf_counter()
    with get_task_stream(client) as stream:
        lazy.compute()
    return stream.data, time.perf_counter() - start


first, first_seconds = composite_with(512)
draw_stream(first, f"the first time: {first_seconds:.1f} s")

# %%
again, again_seconds = composite_with(512)
draw_stream(again, f"and again: {again_seconds:.1f} s")

# %% [markdown]
# ## Windows that are too small
#
# Smaller windows look harmless: more tasks, better spread. Look at the dashboard with windows of 64 pixels, and it seems
# content, green without gaps:
#
# ![Windows of 512 pixels](../docs/pages/assets/dashboard_stream_good.png)
# ![Windows of 64 pixels](../docs/pages/assets/dashboard_stream_small.png)
#
# But the first of these took 3 seconds and the second 37, for the same square of 1024 pixels. The files' tiles have 512
# pixels, and a tile can only be decoded as a whole: each was decoded 64 times. *Busy is not the same as useful*; look at
# the axis, too.

# %%
sizes = [128, 256, 512]
seconds = [composite_with(size)[1] for size in sizes]
plt.figure(figsize=(7, 3.5))
plt.bar([str(size) for size in sizes], seconds, color="tab:green")
plt.xlabel("rows and columns of a window")
plt.ylabel("seconds")
plt.title("the same composite");

# %% [markdown]
# Leave `chunks` at `"auto"`, then, unless you know better: the result is the same to the byte with any of them.
#
# At the other end, one window for each worker is too few: when one of them takes longer, the others wait. A handful for each
# thread is enough.
#
# ## More workers
#
# Decoding is nearly all of the work, and it is done in parallel without a word between the workers. So the speed grows with
# the cores, as long as there are windows for them and the disk or the network can follow.

# %%
client.close()
times = {}
for workers in (1, WORKERS):
    with s2c.connect("local", workers=workers, threads=1, memory="2GB", dashboard=":0", announce=False) as client:
        composite_with(512)  # compiles
        times[workers] = min(composite_with(256)[1] for _ in range(2))
for workers, took in times.items():
    print(f"{workers} worker(s): {took:.2f} s, {SCENES * SIZE * SIZE * 3 / took / 1e6:.0f} MB of pixels a second")

# %% [markdown]
# (Where other programs use the same cores, as in tests, the second line may disappoint.)
#
# Processes or threads? What is slow here runs without Python's global lock, so threads work as well as processes, and share
# what is in memory. Reading from a bucket is different: a thread waits most of its time for the answer, so give a worker
# **more threads than it has cores**, 2 to 4 times as many.
#
# ## What do I see, what do I do?
#
# | on the dashboard | means | do |
# |---|---|---|
# | green, no gaps, memory blue | all is well | get a coffee |
# | white between the bars, CPU low | workers wait for the network | more `threads` for each worker |
# | white at the end, one long bar | too few windows | more windows: smaller `chunks`, not below the files' tiles |
# | much red | data travels: masks or arrays in other chunks than the cube | give them the cube's chunks |
# | orange memory, restarts | a window does not fit | `chunks="auto"`, fewer threads or more memory |
# | grey, nothing moves | a worker is gone, or the scheduler is lost | the job goes on by itself, or: run it again |
#
# ## Keep it
#
# A link is gone with its cluster. `performance_report` writes the whole dashboard of a computation into one file, to be
# looked at later or sent to somebody; a job has the key `performance_report` for it.

# %%
with s2c.connect("local", workers=WORKERS, threads=1, memory="2GB", dashboard=":0", announce=False):
    with performance_report(str(Path(DIRECTORY) / "report.html")):
        done = s2c.composite(s2c.open_cube(files)).compute()
print("report.html:", (Path(DIRECTORY) / "report.html").stat().st_size // 1000, "kB")
done.plot();
