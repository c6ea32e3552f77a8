"""Pixels out: COG, Zarr and what is said about them."""
