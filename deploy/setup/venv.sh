#!/bin/sh
# Make the virtual environment $1 with l7proxy and its tools in it. Says what to install when Python will not do it.
set -eu
venv=$1
python=${PYTHON:-python3}

if ! command -v "$python" >/dev/null 2>&1; then
    echo "error: $python not found: install Python 3.11 or newer, or name it: make PYTHON=/path/to/python3" >&2
    exit 2
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $("$python" --version) is too old: l7proxy needs 3.11 or newer (make PYTHON=/path/to/python3)" >&2
    exit 2
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
        echo "installing $version-venv"
        { apt-get update -qq && apt-get install -y -qq "$version-venv"; } >/dev/null
    else
        echo "error: Python's venv module is missing; as root: apt-get install $version-venv" >&2
        exit 2
    fi
fi
[ -x "$venv/bin/python" ] || "$python" -m venv "$venv"
echo "installing l7proxy and its tools into $venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev,bench]'
