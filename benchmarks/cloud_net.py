"""What `CloudNet` costs: beside bare ONNX Runtime on the same tiles, a year of scenes in a composite, and memory.

    python benchmarks/cloud_net.py [--scenes 2] [--size 10980] [--resolution 60] [--of 146] [--directory bench_cloud_net]

Scenes are generated reflectances of blue, green, red and near infrared at 10 m (the network of four bands; that of six
takes as long). First one thread evaluates the mask of the first scene, and bare ONNX Runtime as many tiles of 256 x 256;
then the median of red, green, blue and near infrared is written with two threads, with and without the mask. The mask
of `--of` scenes takes as often what that of the first took, on two threads half of it.
"""

import argparse
import resource
import time

import dask
import numpy as np

import s2composite as s2c
from s2composite.cube import tile_masks
from s2composite.cube.masking import masks_of
from s2composite.cube.open import stack_of
from s2composite.demo import make_scenes
from s2composite.pixels.cloud_net import Network, network

BANDS = ["B04", "B03", "B02", "B08"]


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def timed(call):
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def against_bare_runtime(cube, rule):
    """Print the seconds of a scene's mask, and of the network alone on as many tiles, in turns in one run."""
    stack, _ = stack_of(cube.isel(time=[0]))
    (mask,) = masks_of(stack, [rule])
    region = tuple(slice(0, n) for n in stack.shape[2:])
    net, seen, probabilities = network(4, "l2a"), [], Network.probabilities
    name = net.session.get_inputs()[0].name

    def counted(self, patch):
        found = probabilities(self, patch)
        seen.append(patch[None].copy())  # as it is scaled for the network
        return found

    def ours():
        tile_masks._TILES.clear()
        list(mask.begin(region)([region], np.zeros(1, bool), [None]))

    Network.probabilities = counted
    ours()
    Network.probabilities = probabilities
    turns = [(timed(ours), timed(lambda: [net.session.run(None, {name: patch}) for patch in seen])) for _ in range(2)]
    own, bare = (min(times) for times in zip(*turns, strict=True))
    print(f"one thread, {len(seen)} tiles: {own:.2f} s a scene, ONNX Runtime alone {bare:.2f} s: {own / bare:.3f} x")
    print(f"  {1000 * bare / len(seen):.0f} ms a tile; peak memory {peak():.2f} GiB")
    return own


def main():
    arguments = argparse.ArgumentParser()
    for name, usual in (("scenes", 2), ("size", 10980), ("resolution", 60), ("of", 146)):
        arguments.add_argument(f"--{name}", type=int, default=usual)
    arguments.add_argument("--directory", default="bench_cloud_net")
    given = arguments.parse_args()
    home = f"{given.directory}/{given.scenes}_{given.size}"
    try:
        cube = s2c.open_cube(home, bands=BANDS)
    except s2c.S2CompositeError:
        make_scenes(home, scenes=given.scenes, size=given.size, assets=BANDS, compress="deflate")
        cube = s2c.open_cube(home, bands=BANDS)
    rule = s2c.CloudNet(level="l2a", resolution=given.resolution)
    with dask.config.set(scheduler="sync"):
        own = against_bare_runtime(cube, rule)
    with dask.config.set(scheduler="threads", num_workers=2):
        for name, rules in (("no mask", ["nodata"]), ("CloudNet", ["nodata", rule])):
            tile_masks._TILES.clear()
            comp = s2c.composite(cube, "median", valid=rules)
            seconds = timed(lambda comp=comp, name=name: comp.to_raster(f"{home}_{name[:2]}.tif", overwrite=True))
            print(f"median of {given.scenes} scenes of {given.size}², two threads, {name}: {seconds:.1f} s")
    # not the difference of the two, which other things change as well: tiles under clouds are not read
    print(
        f"the mask of {given.of} of them on two threads: {own / 2 * given.of / 60:.1f} minutes; peak {peak():.2f} GiB"
    )


if __name__ == "__main__":
    main()
