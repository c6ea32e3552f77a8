"""Arithmetic: NumPy in, NumPy out. No I/O, no Dask, no xarray."""
