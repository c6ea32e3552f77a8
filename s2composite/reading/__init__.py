"""Reading pixels: the only layer that opens rasters. No Dask, no xarray."""
