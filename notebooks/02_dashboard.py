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
# # The dashboard: what the workers do, and what to tune
#
# When a computation takes long there are two questions: is it working, and could it be faster? Dask's *dashboard* answers
# both. This notebook explains what it shows while a season is composited, and then varies the two parameters that matter,
# the size of the windows and the number of workers.

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
# The line above has a link. Open it in a second window. While 216 scenes of 4096 x 4096 pixels are composited it looks like
# this:
#
# ![The status page of the dashboard](../docs/pages/assets/dashboard_status.png)
#
# - **Task stream**, the large one: a row for each thread of each worker, a bar for each task, time to the right. Colour is
#   work, white is waiting, red is data transfer between workers. This one is good: hardly any white, and red only at the
#   beginning, when the list of scenes is sent to a worker.
# - **Bytes stored per worker**: memory. Dark is managed by Dask, light is other memory of the process. The axis ends at the
#   worker's limit; a bar that turns orange is near it, and a worker that reaches it is restarted.
# - **Progress**: tasks that are done, in memory, waiting.
#
# ## What is a task?
#
# The unit of work is a *window*: some hundred pixels on a side, of **all** scenes. One task reads it, masks it, computes the
# median, and frees the observations; only the result leaves the task. So there are few tasks, and they are large.

# %%
cube = s2c.open_cube(files)
comp = s2c.composite(cube)
windows = cube.data.numblocks[2] * cube.data.numblocks[3]
print(f"{SCENES} scenes, windows of {cube.data.chunksize[2]} x {cube.data.chunksize[3]} pixels: {windows} of them")
print(f"observations of a window: {np.prod(cube.data.chunksize) / 1e6:.0f} MB, tasks in all: {len(comp.dataset.__dask_graph__())}")

# %% [markdown]
# The size of the windows was chosen automatically: as large as a quarter of the memory of one thread allows, in whole tiles
# of the files. So neither the number of scenes nor the size of the area can fill the memory of a worker.
#
# ## Plotting the task stream
#
# The data behind the dashboard are available in Python. We composite with windows of 512 pixels, to have several, and plot
# the stream ourselves. The first tasks take longer: they compile kernels, once for each worker.


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
# Smaller windows look harmless: more tasks, better distributed. With windows of 64 pixels, the dashboard looks fine, green
# without gaps:
#
# ![Windows of 512 pixels](../docs/pages/assets/dashboard_stream_good.png)
# ![Windows of 64 pixels](../docs/pages/assets/dashboard_stream_small.png)
#
# But the first of these took 3 seconds and the second 37, for the same square of 1024 pixels. The files' tiles have 512
# pixels, and a tile can only be decoded as a whole: each was decoded 64 times. Busy workers are not always efficient: check
# the time axis, too.

# %%
sizes = [128, 256, 512]
seconds = [composite_with(size)[1] for size in sizes]
plt.figure(figsize=(7, 3.5))
plt.bar([str(size) for size in sizes], seconds, color="tab:green")
plt.xlabel("rows and columns of a window")
plt.ylabel("seconds")
plt.title("the same composite");

# %% [markdown]
# So leave `chunks` at `"auto"` unless you have a reason to change it: the result is the same to the byte with any value.
#
# At the other extreme, one window for each worker is too few: when one takes longer, the others wait. A few for each thread
# are enough.
#
# ## More workers
#
# Decoding is nearly all of the work, and it runs in parallel without communication between the workers. So the speed grows
# with the cores, as long as there are enough windows and the disk or network is fast enough.

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
# (If other programs use the same cores, as in tests, the second line may show less speed-up.)
#
# Processes or threads? The slow parts run without Python's global lock, so threads work as well as processes, and share
# memory. Reading from a bucket is different: a thread mostly waits for responses, so give a worker **more threads than it
# has cores**, 2 to 4 times as many.
#
# ## Symptoms and remedies
#
# | on the dashboard | means | do |
# |---|---|---|
# | green, no gaps, memory blue | all is well | nothing |
# | white between the bars, CPU low | workers wait for the network | more `threads` for each worker |
# | white at the end, one long bar | too few windows | more windows: smaller `chunks`, not below the files' tiles |
# | much red | data is transferred: masks or arrays have other chunks than the cube | give them the cube's chunks |
# | orange memory, restarts | a window does not fit | `chunks="auto"`, fewer threads or more memory |
# | grey, nothing moves | a worker or the scheduler is lost | the job continues by itself; otherwise run it again |
#
# ## Saving the dashboard
#
# The link ends with its cluster. `performance_report` writes the whole dashboard of a computation into one file, to view
# or share later; a job has the key `performance_report` for it.

# %%
with s2c.connect("local", workers=WORKERS, threads=1, memory="2GB", dashboard=":0", announce=False):
    with performance_report(str(Path(DIRECTORY) / "report.html")):
        done = s2c.composite(s2c.open_cube(files)).compute()
print("report.html:", (Path(DIRECTORY) / "report.html").stat().st_size // 1000, "kB")
done.plot();
