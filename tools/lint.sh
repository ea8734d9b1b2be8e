#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every check that needs no build: ruff, mypy, codespell, clang-format. `tools/lint.sh fix` mends what can be mended.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=${VENV:-.venv}/bin
mapfile -t sources < <(git ls-files --cached --others --exclude-standard '*.h' '*.cc')
if [ "${1:-}" = fix ]; then
  "$bin/ruff" format . && "$bin/ruff" check --fix . ; clang-format -i "${sources[@]}"
  exit
fi
code=0
"$bin/ruff" check . || code=1
"$bin/ruff" format --check --quiet . || { echo "ruff format: run make format"; code=1; }
"$bin/mypy" --cache-dir build/mypy || code=1
"$bin/codespell" $(git ls-files '*.md' '*.py' '*.h' '*.cc' '*.sh' '*.toml') || code=1
if [ ${#sources[@]} -gt 0 ]; then clang-format --dry-run --Werror "${sources[@]}" || code=1; fi
exit $code
