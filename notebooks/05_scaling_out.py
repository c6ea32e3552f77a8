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
# A composite of one granule is a coffee break. A country is a night, and in a night things happen: a machine goes away, a
# token expires, a file turns out to be broken, somebody closes a laptop. This notebook runs a job as one does in such a
# night: it asks first what the job will take, starts it, **interrupts it for real**, goes on, and reads in the ledger what
# happened. The job is small enough for two minutes; nothing else about it is different.

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
# Two keys are needed, `source` and `output`. The others have defaults; here we ask for the layers beside the picture, for
# two workers, and for windows much smaller than one would, to have something to interrupt.

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
# A key that is misspelt does not cost a night, it costs a second:

# %%
try:
    s2c.load_job(job_file, ["chunk=512"])
except s2c.S2CompositeError as error:
    print(error)

# %% [markdown]
# ## Plan
#
# Headers are read, nothing else, and the plan says what will be read, held in memory and written, on these workers. Is the
# memory enough? Will it end before the morning? Better asked now.

# %%
plan = s2c.plan(job)
print(plan.explain())

# %% [markdown]
# Each window has a row of its own: how many scenes touch it, how many bytes will be read for it. The large squares are the
# files' own tiles of 512 pixels. A window that is smaller than a tile has to read all of it, which is why one would leave
# `chunks` alone. Within the larger squares, what compresses badly costs more, and where the satellite looked less often less.

# %%
rows, columns = (max(w.window[axis] for w in plan.windows) + 1 for axis in (0, 1))
megabytes = np.array([w.bytes for w in plan.windows]).reshape(rows, columns) / 1e6
plt.figure(figsize=(5.5, 4.2))
plt.imshow(megabytes, cmap="viridis")
plt.colorbar(label="MB to read")
plt.title(f"{len(plan.windows)} windows");

# %% [markdown]
# ## Run, and pull the plug
#
# The job runs in a process of its own, as it would on a server: `s2composite run job.yaml`. We watch its ledger, and when a
# third of the windows are made we kill it, and its workers with it, as a power cut would.

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
# There is no `median.tif`. A file takes its name when it is complete and was verified, not before; what is done lies beside
# it, window by window. `status` reads the ledger:

# %%
print(subprocess.run([*command, "status", str(job_file)], capture_output=True, text=True, check=True).stdout)

# %% [markdown]
# ## Go on
#
# The same command again. It knows from the ledger, and from the finished windows themselves, what is left to do. It would
# know in a week, on another machine, on another cluster, as long as scenes and parameters are the same; if they are not, it
# says so instead of mixing two results.

# %%
before = windows_done()
result = s2c.run(job)
print(f"{result.windows} windows, {result.made} of them made now, {result.windows - result.made} before")
assert result.made <= result.windows - before

# %% [markdown]
# And the result? The same, to the byte, as if nothing had happened. We make it once more, without a break and without
# jobs, and compare the files.

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
# ## What happened?
#
# The ledger has a line for each event, and is only ever added to. As a table it answers questions: which windows were slow,
# who made them, what was tried again. Here is the night as a picture: the first run, the gap, the second.

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
# `s2composite report` makes a page of it, `report.html`, to be sent to whoever asks how it went: a map of the windows, the
# failures by cause, versions, the job itself.

# %%
from s2composite.runner.report import job_report

report = job_report(job)
slowest = max(report.seconds, key=report.seconds.get)
print(report.state, "|", report.retries, "retries |", "slowest window", slowest, f"{report.seconds[slowest]:.2f} s")
print("seconds of all workers:", json.dumps(dict(report.timings)))

# %% [markdown]
# ## A scene that is broken
#
# Not all that fails is a power cut. We break one file, as a download that stopped half-way does, in a job of its own. By
# default a scene that cannot be read stops the work, with its name; a composite with a hole that nobody knows of is worse
# than none. `on_error: skip` goes on without it, and says so in the output.

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
# Only one key of the job changes, `cluster`. The file may be one of `examples/clusters`: machines over SSH, a Dask gateway,
# Kubernetes, Coiled, Slurm; eo-grow's `cluster.yaml` for Ray is read, too.
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
# Before a long job, ask every worker what it has and what it can reach; versions that differ and credentials that did not
# arrive are found in seconds:

# %%
with s2c.connect("local", workers=2, dashboard=":0") as client:
    check = s2c.check_cluster(client, source=str(directory / "scenes"))
print("ok:", check.ok, "|", [f"{worker.threads} thread, {worker.memory / 1e9:.1f} GB" for worker in check.workers])

# %% [markdown]
# ## More area
#
# `grid` cuts an area into cells, each a product with its own ledger, and `{cell}` in the output is its name:
#
# ```yaml
# source: gs://my-bucket/france/items.parquet        # a STAC search, kept as stac-geoparquet
# output: gs://my-bucket/france/median_{cell}.tif
# area: france.geojson
# grid: mgrs
# ```
#
# The rest of the night is the same: `plan`, `run`, and in the morning `status`.
