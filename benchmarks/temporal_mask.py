"""What `TemporalMask` costs and finds: time of the main job with and without it, and what composites are picked from.

    python benchmarks/temporal_mask.py [DIRECTORY] [SIZE] [RUNS]

The job is 216 scenes of true colours in JPEG, of which 24 are rendered (default 4096 x 4096 pixels: the smallest that
have overviews of 80 m; 10980 is a granule). Its times are the least of RUNS (default 3) by the clock, and of the
processor, which other work on the machine changes less. RUNS of 0 leave the job out. The shares are those of pixels picked from a cloud, haze or shadow of the generator's truth, in
years of 24, 72 and 216 scenes.
"""

import sys
import time
from pathlib import Path

import numpy as np
import rasterio

import s2composite as s2c
from s2composite.cube import tile_masks
from s2composite.demo import make_scenes

RULES = {"default": ("nodata", "saturated"), "TemporalMask": ("nodata", "saturated", "temporal_mask")}


def share_of_bad(directory, rules):
    truth = []
    for path in sorted(directory.glob("*_SCL.tif")):
        with rasterio.open(path) as dataset:
            truth.append(dataset.read(1).repeat(2, 0).repeat(2, 1))
    comp = s2c.composite(s2c.open_cube(directory, bands=["TCI"]), valid=rules).compute()
    source = comp["source"].values
    of = np.take_along_axis(np.stack(truth), source[None].clip(0), axis=0)[0]
    return (np.isin(of, (3, 8, 9, 10)) & (source >= 0)).mean(), comp["count"].values.mean()


def main(directory="bench_temporal", size=4096, runs=3):
    home = Path(directory)
    for scenes in (24, 72, 216):
        year = home / f"year_{scenes}"
        if not year.exists():
            make_scenes(year, scenes=scenes, size=1024, assets=("TCI", "SCL"))
        for name, rules in RULES.items():
            bad, count = share_of_bad(year, rules)
            print(
                f"{scenes:3} scenes, {name:12}: {100 * bad:5.2f} % of pixels from cloud, haze, shadow; {count:5.1f} observations"
            )
    if int(runs) == 0:
        return
    job = home / f"job_{size}"
    if not job.exists():
        make_scenes(job, scenes=216, size=int(size), distinct=24)
    times = {name: [] for name in RULES}
    for _ in range(int(runs)):
        for name, rules in RULES.items():
            tile_masks._TILES.clear()
            begun, used = time.perf_counter(), time.process_time()
            comp = s2c.composite(s2c.open_cube(job), valid=rules)
            comp.to_raster(str(home / f"{name}.tif"), overwrite=True, progress=False)
            times[name].append((time.perf_counter() - begun, time.process_time() - used))
    least = {name: [min(kind) for kind in zip(*taken, strict=True)] for name, taken in times.items()}
    for name, (clock, processor) in least.items():
        more = [f"{100 * (mine / bare - 1):+.0f} %" for mine, bare in zip(least[name], least["default"], strict=True)]
        print(
            f"216 x {size} x {size}, {name:12}: {clock:6.1f} s ({more[0]}), {processor:6.1f} s of processor ({more[1]})"
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
