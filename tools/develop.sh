#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the native parts into python/arcflow and links that folder into $VENV, so that edits of Python need no build.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
PATH=$PWD/$venv/bin:$PATH
cmake --preset python -DPython_EXECUTABLE="$PWD/$venv/bin/python" >/dev/null
cmake --build --preset python --parallel "${JOBS:-$(nproc)}"
cmake --install build/python --component python >/dev/null
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
echo "$PWD/python" >"$site/arcflow-develop.pth"
echo "== native parts are in python/arcflow, and $venv imports arcflow from there"
