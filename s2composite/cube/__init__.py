"""Cubes and composites: the only layer of xarray and dask.array."""
