"""Which acquisitions: names, dates, listings. No pixels, no Dask."""
