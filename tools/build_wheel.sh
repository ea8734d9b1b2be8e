#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Builds the one wheel into build/wheel, against the TensorFlow and nanobind of $VENV.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1
export CMAKE_GENERATOR=Ninja CMAKE_BUILD_PARALLEL_LEVEL=${JOBS:-$(nproc)}
if command -v ccache >/dev/null; then export CMAKE_CXX_COMPILER_LAUNCHER=ccache; fi
export CXX=${CXX:-c++}  # the name that CMake chooses elsewhere: ccache keeps objects by it, too
rm -f build/wheel/arcflow-*.whl
PATH=$PWD/$venv/bin:$PATH "$venv/bin/python" -m pip wheel --disable-pip-version-check --no-build-isolation --no-deps \
  --wheel-dir build/wheel . ${WHEEL_FLAGS:-}
