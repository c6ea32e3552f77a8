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
# # Scaling out: plan, run, resume, clusters
#
# A composite of one granule takes minutes. A country takes a night, and in that time a machine may fail, a token may
# expire, a file may be damaged, or somebody may close a laptop. This notebook runs a job as you would for such an area: it
# plans the job, starts it, **really interrupts it**, resumes it, and reads in the ledger what happened. Only its size is
# different: it takes two minutes.

# %% tags=["parameters"]
DIRECTORY = "scaling_out"  # where scenes and results go
SCENES = 24  # acquisitions
SIZE = 1536  # rows and columns of 10 m
WINDOW = 128  # rows and columns of a window: tiny, so that there are many

# %%
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import rasterio
import s2composite as s2c
from s2composite.demo import make_scenes

directory = Path(DIRECTORY)
files = make_scenes(directory / "scenes", scenes=SCENES, size=SIZE, seed=2)

# %% [markdown]
# ## A job is a file
#
# Two keys are needed, `source` and `output`. The others have defaults; here we set additional layers, two workers, and
# windows much smaller than usual, so that there is something to interrupt.

# %%
job_file = directory / "job.yaml"
job_file.write_text(f"""\
source: {directory}/scenes
output: {directory}/median.tif
layers: [composite, count, source]
chunks: {WINDOW}
raster: {{blocksize: {WINDOW}}}
cluster: {{type: local, workers: 2, threads: 1, memory: 1GB, dashboard: ":0"}}
""")
job = s2c.load_job(job_file)

# %% [markdown]
# A misspelt key is reported within a second:

# %%
try:
    s2c.load_job(job_file, ["chunk=512"])
except s2c.S2CompositeError as error:
    print(error)

# %% [markdown]
# ## Plan
#
# Only headers are read. The plan shows what will be read, held in memory and written on these workers: whether the memory is
# sufficient, and how long it will take.

# %%
plan = s2c.plan(job)
print(plan.explain())

# %% [markdown]
# Each window has a row: how many scenes touch it, how many bytes will be read for it. The large squares are the files' tiles
# of 512 pixels. A window that is smaller than a tile has to read all of it, so `chunks` is best left at its default. Within
# the larger squares, areas that compress badly cost more, and areas with fewer scenes cost less.

# %%
rows, columns = (max(w.window[axis] for w in plan.windows) + 1 for axis in (0, 1))
megabytes = np.array([w.bytes for w in plan.windows]).reshape(rows, columns) / 1e6
plt.figure(figsize=(5.5, 4.2))
plt.imshow(megabytes, cmap="viridis")
plt.colorbar(label="MB to read")
plt.title(f"{len(plan.windows)} windows");

# %% [markdown]
# ## Run and interrupt
#
# The job runs in a separate process, as it would on a server: `s2composite run job.yaml`. We watch its ledger, and when a
# third of the windows are done we kill it and its workers, as a power failure would.

# %%
command = [sys.executable, "-c", "from s2composite.cli import main; main()"]


def windows_done():
    ledger = directory / "median.tif.ledger"
    events = [line for file in ledger.glob("*.jsonl") for line in file.read_text().splitlines()]
    return sum('"event":"done"' in line for line in events)


running = subprocess.Popen(
    [*command, "run", str(job_file)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
)
while windows_done() < len(plan.windows) // 3 and running.poll() is None:
    time.sleep(0.05)
os.killpg(running.pid, signal.SIGKILL)  # not asked to stop: gone
running.wait()
print(f"killed after {windows_done()} of {len(plan.windows)} windows;", "median.tif is there:", (directory / "median.tif").exists())

# %% [markdown]
# There is no `median.tif`. A file gets its final name only when it is complete and verified; the finished windows are stored
# next to it. `status` reads the ledger:

# %%
print(subprocess.run([*command, "status", str(job_file)], capture_output=True, text=True, check=True).stdout)

# %% [markdown]
# ## Resume
#
# We run the same command again. It finds the remaining windows from the ledger and from the finished windows. This also
# works in a week, on another machine or another cluster, as long as scenes and parameters are the same; otherwise it reports
# an error instead of mixing two results.

# %%
before = windows_done()
result = s2c.run(job)
print(f"{result.windows} windows, {result.made} of them made now, {result.windows - result.made} before")
assert result.made <= result.windows - before

# %% [markdown]
# The result is the same, to the byte, as without the interruption. We compute it once more, without interruption and
# without jobs, and compare the files.

# %%
with s2c.connect("local", workers=2, threads=1, dashboard=":0"):
    comp = s2c.composite(s2c.open_cube(directory / "scenes"))
    (undisturbed,) = comp.to_raster(str(directory / "undisturbed.tif"), blocksize=WINDOW, overwrite=True, progress=False)
same = Path(undisturbed).read_bytes() == (directory / "median.tif").read_bytes()
print("the same bytes:", same)
assert same

# %%
with rasterio.open(directory / "median.tif") as median, rasterio.open(files[5]) as scene:
    figure, axes = plt.subplots(1, 2, figsize=(11, 5.5), layout="constrained")
    axes[0].imshow(np.moveaxis(scene.read(), 0, -1))
    axes[1].imshow(np.moveaxis(median.read(), 0, -1))
axes[0].set_title("one scene")
axes[1].set_title("the job's result")
for ax in axes:
    ax.set_axis_off()

# %% [markdown]
# ## The ledger
#
# The ledger is append-only, with a line for each event. As a table it shows which windows were slow, which worker computed
# them, and what was retried. Here is the timeline: the first run, the gap, the second run.

# %%
from s2composite.runner.ledger import ledger_table

table = ledger_table(str((directory / "median.tif").absolute()))
done = table[table["event"] == "done"]
at = done["at"].astype("datetime64[ns, UTC]")
seconds = (at - at.min()).dt.total_seconds()
plt.figure(figsize=(10, 3))
for n, run in enumerate(done["run"].unique()):
    mine = done["run"] == run
    plt.plot(seconds[mine], np.arange(len(done))[mine.to_numpy()], ".", label=f"run {n + 1}")
plt.xlabel("seconds")
plt.ylabel("windows done")
plt.legend();

# %% [markdown]
# `s2composite report` writes it as a page, `report.html`: a map of the windows, the failures by cause, versions, the job
# itself.

# %%
from s2composite.runner.report import job_report

report = job_report(job)
slowest = max(report.seconds, key=report.seconds.get)
print(report.state, "|", report.retries, "retries |", "slowest window", slowest, f"{report.seconds[slowest]:.2f} s")
print("seconds of all workers:", json.dumps(dict(report.timings)))

# %% [markdown]
# ## A damaged scene
#
# Not every failure is a power failure. In a separate job, we truncate one file, like an incomplete download. By default a
# scene that cannot be read stops the job with an error that names it, because a composite with an unnoticed gap is worse
# than none. `on_error: skip` continues without it, and records this in the output.

# %%
broken = directory / "broken"
broken.mkdir(exist_ok=True)
for file in files[:8]:
    (broken / Path(file).name).write_bytes(Path(file).read_bytes())
victim = broken / Path(files[3]).name
victim.write_bytes(victim.read_bytes()[:60_000])

cube = s2c.open_cube(broken, on_error="skip")
skipped = s2c.composite(cube).compute()
status = skipped.dataset["read_status"]
print("scenes with something unread:", [str(name) for name in skipped.dataset["scene"].values[(status != 0).any(status.dims[1:])]])
try:
    s2c.composite(s2c.open_cube(broken)).compute()
except s2c.S2CompositeError as error:
    print("without skip:", error)

# %% [markdown]
# ## More machines
#
# Only one key of the job changes, `cluster`. It can name a file such as those in `examples/clusters`: machines over SSH, a
# Dask gateway, Kubernetes, Coiled, Slurm; eo-grow's `cluster.yaml` for Ray is read, too.
#
# ```yaml
# cluster:
#   type: ssh
#   hosts: [node1, node2, node3]
#   workers: 2
#   threads: 4
#   memory: 16GB
# ```
#
# Before a long job, check what every worker has and can reach; this finds different versions and missing credentials in
# seconds:

# %%
with s2c.connect("local", workers=2, dashboard=":0") as client:
    check = s2c.check_cluster(client, source=str(directory / "scenes"))
print("ok:", check.ok, "|", [f"{worker.threads} thread, {worker.memory / 1e9:.1f} GB" for worker in check.workers])

# %% [markdown]
# ## More area
#
# `grid` cuts an area into cells, each a product with its own ledger; `{cell}` in the output is replaced by its name:
#
# ```yaml
# source: gs://my-bucket/france/items.parquet        # a STAC search, kept as stac-geoparquet
# output: gs://my-bucket/france/median_{cell}.tif
# area: france.geojson
# grid: mgrs
# ```
#
# The rest is the same: `plan`, `run`, `status`.
