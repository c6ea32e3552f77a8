"""GDAL's command line, as the system installed it: another build than the one in rasterio's wheels."""

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

_TRANSLATE = shutil.which("gdal_translate")


def _decodes_jpeg_by_libjpeg_turbo():
    """Whether its JPEG library has one of the interfaces that libjpeg-turbo offers; 9 is IJG's own."""
    try:
        libraries = subprocess.run(["ldd", _TRANSLATE], capture_output=True, text=True, check=True).stdout
    except (OSError, TypeError, subprocess.CalledProcessError):
        return False
    return any(name in libraries for name in ("libjpeg.so.62", "libjpeg.so.8", "libturbojpeg"))


needs_gdal = pytest.mark.skipif(_TRANSLATE is None, reason="GDAL's command line is not installed (Debian: gdal-bin)")
needs_libjpeg_turbo = pytest.mark.skipif(
    _TRANSLATE is None or not _decodes_jpeg_by_libjpeg_turbo(),
    reason="no gdal_translate that decodes JPEG by libjpeg-turbo (Debian: gdal-bin)",
)


def translated(path, dtype, *options):
    """Return all values of a raster as `gdal_translate` with `options` writes them: flat, band by band."""
    with TemporaryDirectory() as directory:
        raw = Path(directory, "raw.bin")
        command = [_TRANSLATE, "-q", "-of", "ENVI", "-co", "INTERLEAVE=BSQ", *options, path, raw]
        subprocess.run(command, check=True, capture_output=True)
        return np.fromfile(raw, dtype)
