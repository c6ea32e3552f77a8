"""How anything outside of the process is reached: files, objects, HTTP, GDAL, credentials."""
