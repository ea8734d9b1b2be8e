#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Puts the newest wheel of build/wheel into build/venv: an environment that sees the packages of $VENV but not its
# `make develop` link, so that tests, demo and benches run on exactly what users install.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
target=build/venv
wheel=$(ls -t build/wheel/arcflow-*.whl | head -1)

if [ ! -x $target/bin/python ]; then
  "$venv/bin/python" -m venv --without-pip $target
fi
# A .pth file adds the folder but does not run the .pth files inside it, so the develop link stays out.
site=$("$target/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
"$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' >"$site/_dependencies.pth"
# An egg-info of another arcflow in $VENV must not make pip think that this one is there.
"$venv/bin/python" -m pip --python $target/bin/python install --quiet --disable-pip-version-check \
  --no-deps --no-index --force-reinstall "$wheel"
where=$("$target/bin/python" -c 'import arcflow; print(arcflow.__file__)')
case $where in
  "$PWD"/build/venv/*) echo "== $(basename "$wheel") is installed in $target" ;;
  *) echo "arcflow is imported from $where, not from the wheel" >&2; exit 1 ;;
esac
