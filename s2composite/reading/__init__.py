"""Pixels in: the only floor that opens rasters. No Dask, no xarray."""
