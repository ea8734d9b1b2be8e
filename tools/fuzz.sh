#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target of build/fuzz for a while, starting from its committed corpus.
# usage: tools/fuzz.sh <seconds each>
set -euo pipefail
cd "$(dirname "$0")/.."
found=0
while IFS= read -r target; do
  name=$(basename "$target")
  seeds=$(find cpp -type d -path "*/testdata/$name" | head -1)
  mkdir -p "build/fuzz/corpus/$name"
  echo "== $name for $1 s"
  "$target" -max_total_time="$1" -artifact_prefix="build/fuzz/$name-" "build/fuzz/corpus/$name" ${seeds:+"$seeds"}
  found=1
done < <(find build/fuzz/cpp -type f -name '*_fuzz' -perm -u+x | sort)
[ $found -eq 1 ] || { echo "no fuzz target was built" >&2; exit 1; }
