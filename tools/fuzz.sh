#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target of build/fuzz for a while, starting from its committed corpus.
# usage: tools/fuzz.sh <seconds each> [inputs each]; whichever comes first. FUZZ_ONLY=frame_fuzz,… runs some.
set -euo pipefail
cd "$(dirname "$0")/.."
found=0
while IFS= read -r target; do
  name=$(basename "$target")
  if [ -n "${FUZZ_ONLY:-}" ] && [[ ",$FUZZ_ONLY," != *",$name,"* ]]; then continue; fi
  seeds=$(find cpp -type d -path "*/testdata/$name" | head -1)
  mkdir -p "build/fuzz/corpus/$name"
  echo "== $name for $1 s${2:+, at most $2 inputs}"
  "$target" -max_total_time="$1" -runs="${2:--1}" -artifact_prefix="build/fuzz/$name-" "build/fuzz/corpus/$name" ${seeds:+"$seeds"}
  found=1
done < <(find build/fuzz/cpp -type f -name '*_fuzz' -perm -u+x | sort)
[ $found -eq 1 ] || { echo "no fuzz target was built" >&2; exit 1; }
