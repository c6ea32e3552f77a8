#!/bin/sh
# Install the service of the sources in $1 into a virtual environment at $2, in the versions of requirements.txt beside
# this file: what the image is made of. Wheels only, so that no compiler is needed.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python3 -m venv "$2"
"$2/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --only-binary :all: -r "$here/requirements.txt"
"$2/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir --no-deps "$1"
"$2/bin/s2composite" serve --help >/dev/null
