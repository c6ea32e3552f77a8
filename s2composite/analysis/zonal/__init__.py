"""Zonal: statistics of polygons, chunk by chunk."""
