#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# `make test`: every stage in order, stops at the first that fails with its exit code, ends with the runners' summaries.
# usage: tools/ci.sh [stage...]   (default: all; see the list at the end)
set -uo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
jobs=${JOBS:-$(nproc)}
logs=build/logs
mkdir -p $logs
summaries=()
export CCACHE_BASEDIR=$PWD CCACHE_NOHASHDIR=1  # one compilation serves presets with equal flags, in any folder

configure_build() {  # <preset> [target]
  cmake --preset "$1" -DARC_WERROR=ON >$logs/"$1"-configure.log || { cat $logs/"$1"-configure.log; return 1; }
  cmake --build --preset "$1" --parallel "$jobs" ${2:+--target "$2"}
}

native() {  # <preset> [ctest option...]: build, then run its tests; many of them wait for a time limit most of the time
  configure_build "$1" && ctest --preset "$1" --parallel $((2 * jobs)) "${@:2}"
}

stage_lint() { tools/lint.sh; }
stage_release() { native release; }  # the same tests without a sanitizer; not in the default list
stage_asan() { native asan; }
stage_tsan() { native tsan; }
stage_wheel() {
  WHEEL_FLAGS=--config-settings=cmake.define.ARC_WERROR=ON tools/build_wheel.sh && tools/install_wheel.sh && build/venv/bin/python tools/check_symbols.py build/wheel
}
stage_consumer() {
  rm -rf build/install build/consumer
  cmake --preset release -B build/devel -DARC_DEVELOPER=OFF -DARC_WERROR=ON >$logs/devel-configure.log &&  # ccache has the wheel's
    cmake --build build/devel --parallel "$jobs" &&
    cmake --install build/devel --component devel --prefix build/install >/dev/null &&
    cmake -S cmake/install_test -B build/consumer -G Ninja -DCMAKE_PREFIX_PATH="$PWD/build/install" >/dev/null &&
    cmake --build build/consumer && build/consumer/consumer
}
# Twice as many processes as there are cores: tests also wait, for deadlines and for Spark. The tests of the TensorFlow ops feed
# themselves by a developer target.
stage_pytest() {
  cmake --preset python -B build/tf -DARC_DEVELOPER=ON -DARC_PYTHON=OFF -DARC_WERROR=ON >$logs/tf-configure.log &&
    cmake --build build/tf --target feed_harness arcflow_bench_ops tf_staging_test --parallel "$jobs" &&
    ctest --test-dir build/tf -R "^tf_staging" --output-on-failure &&
    build/venv/bin/python python/tests/spark_class_archive.py &&
    build/venv/bin/python -m pytest -q --durations=40 -m "not hdfs and not yarn and not browser and not long" -n $((2 * jobs)) --dist loadfile --no-loadscope-reorder
}
stage_long() { build/venv/bin/python -m pytest -q --durations=0 -m long; }  # results with their date: docs/results/test-long.md
stage_hdfs() { build/venv/bin/python -m pytest -q -m hdfs; }  # on real Hadoop, which Maven brings; not in the default list
stage_browser() { build/venv/bin/python -m pytest -q -m browser; }  # needs Chromium
stage_yarn() { build/venv/bin/python -m pytest -q -m yarn; }  # the same, with ResourceManager and NodeManager

stage_rdma() {  # the transport and TensorFlow over verbs, in a guest; a machine that cannot have one says why and passes
  local code=0
  configure_build release transport_test || return 1
  tools/rdma_guest/run.sh tools/rdma_guest/conformance.sh "$PWD/build/release/cpp/arcflow/transport/transport_test" || code=$?
  [ $code -eq 77 ] && return 0
  [ $code -eq 0 ] || return $code
  # TensorFlow itself; values to compare with are made here, where it is fast.
  local reference=build/rdma_guest/reference.json
  build/venv/bin/python python/tests/tf/rdma_in_guest.py reference $reference &&
    RDMA_GUEST_MEMORY_MB=6144 RDMA_GUEST_SECONDS=5400 tools/rdma_guest/run.sh tools/rdma_guest/tensorflow.sh "$PWD/build/venv/bin/python" "$PWD/$reference"
}

run() {  # <stage>
  local log=$logs/$1.log start=$SECONDS code line
  printf '\n=== %s\n' "$1"
  "stage_$1" 2>&1 | tee "$log"
  code=${PIPESTATUS[0]}
  # What the runner itself says at its end: ctest, pytest, ruff, mypy, the consumer.
  line=$(grep -aE 'tests? passed|tests failed|(passed|failed|error).* in [0-9.]+s|All checks passed|Success: |Found [0-9]+ error|^consumer:|^symbols:|^rdma guest: skipped' "$log" |
    sed 's/^=* *//; s/ *=*$//' | paste -sd'|' | sed 's/|/; /g')
  summaries+=("$(printf '%-9s %4ds  %s' "$1" $((SECONDS - start)) "${line:-exit code $code}")")
  if [ "$code" -ne 0 ]; then
    printf '\n=== summary\n'; printf '%s\n' "${summaries[@]}"
    printf 'FAILED at stage "%s" with exit code %d; its output is in %s\n' "$1" "$code" "$log"
    exit "$code"
  fi
}

if [ $# -eq 0 ]; then set -- lint asan tsan wheel consumer pytest; fi
for stage in "$@"; do
  declare -F "stage_$stage" >/dev/null || { echo "no stage \"$stage\"" >&2; exit 2; }
done
for stage in "$@"; do run "$stage"; done
printf '\n=== summary\n'; printf '%s\n' "${summaries[@]}"
echo "all stages passed"
