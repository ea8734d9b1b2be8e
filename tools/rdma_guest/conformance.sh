#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Job for the guest: the conformance suite over real verbs, two processes on rxe0. One process a test, as ctest does, so that a
# test that hangs or dies is one failure. usage: conformance.sh <transport_test> [seconds a test]
set -uo pipefail
test=$1
seconds=${2:-120}
export ARC_CONFORMANCE=rdma
ibv_devinfo -d rxe0 | grep -E 'hca_id|transport|active_mtu|state'
passed=0 failed=()
while read -r name; do
  start=$(cut -d' ' -f1 /proc/uptime)
  if timeout "$seconds" "$test" --gtest_filter="$name" >/tmp/test.log 2>&1 && grep -q '\[  PASSED  \] 1 test' /tmp/test.log; then
    passed=$((passed + 1))
    echo "  ok      $name ($(awk -v s="$start" '{printf "%.1f", $1 - s}' /proc/uptime) s)"
  else
    failed+=("$name")
    echo "  FAILED  $name"
    tail -40 /tmp/test.log
  fi
done < <("$test" --gtest_list_tests --gtest_filter='*/Rdma' | awk '/^[^ ]/ {suite = $1} /^ / {print suite $1}')
total=$((passed + ${#failed[@]}))
if [ ${#failed[@]} -eq 0 ] && [ $total -gt 0 ]; then
  echo "100% tests passed, 0 tests failed out of $total (over verbs)"
  exit 0
fi
echo "$((total == 0 ? 0 : passed * 100 / total))% tests passed, ${#failed[@]} tests failed out of $total (over verbs): ${failed[*]:-none ran}"
exit 1
