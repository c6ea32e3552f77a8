"""The TIFF format, for reading and for writing."""
