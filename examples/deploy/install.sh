#!/bin/sh
# Install the service of the sources in $1 into a virtual environment at $2, in the versions of requirements.txt beside
# this file: what the image is made of. Wheels only, so that no compiler is needed. uv and not pip: an eighth of the time.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
export UV_PYTHON_DOWNLOADS=never
python3 -m venv "$2.tools"
"$2.tools/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: uv==0.13.9
uv="$2.tools/bin/uv"
"$uv" venv --quiet --python python3 "$2"
"$uv" pip install --quiet --python "$2" --only-binary :all: -r "$here/requirements.txt"
"$uv" pip install --quiet --python "$2" --no-deps "$1"
rm -r "$2.tools"
"$2/bin/s2composite" serve --help >/dev/null
