#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Makes a fresh machine ready: distribution packages and the virtual environment. Repeatable; does only what is missing.
# usage: tools/setup.sh apt [package list] | venv <requirements file>...
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}

say() { printf '== %s\n' "$*"; }

setup_apt() {
  local wanted missing=()
  mapfile -t wanted < <(grep -vE '^\s*(#|$)' "${1:-requirements/apt.txt}")
  # A virtual environment needs ensurepip, an extension needs Python.h: both may come with a Python that is not Debian's.
  python3 -c 'import ensurepip' 2>/dev/null || wanted+=(python3-venv)
  [ -e "$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["include"])')/Python.h" ] || wanted+=(python3-dev)
  if ! command -v dpkg-query >/dev/null; then
    say "no dpkg here: install the equivalents of: ${wanted[*]}"
    return 0
  fi
  for package in "${wanted[@]}"; do
    case $package in
      openjdk-*) command -v java >/dev/null && continue ;;  # any Java 17 or newer will do
    esac
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
  done
  [ ${#missing[@]} -eq 0 ] && return 0
  if [ "$(id -u)" -ne 0 ]; then
    say "please install first: sudo apt-get install --no-install-recommends ${missing[*]}"
    return 1
  fi
  say "installing distribution packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}

# uv takes a third of pip's time. It does not read pip's configuration: where packages come from is told to it, and pip itself
# is there for what uv cannot do.
install_packages() {  # <arguments of pip install>
  local python=$venv/bin/python index told=()
  if "$python" -m pip install --quiet --disable-pip-version-check uv; then
    index=${PIP_INDEX_URL:-$("$python" -m pip config get global.index-url 2>/dev/null || true)}
    [ -z "$index" ] || told+=("UV_DEFAULT_INDEX=$index")
    [ -z "${PIP_FIND_LINKS:-}" ] || told+=("UV_FIND_LINKS=$PIP_FIND_LINKS")
    [ -z "${PIP_CERT:-}" ] || told+=("SSL_CERT_FILE=$PIP_CERT")
    env "${told[@]}" "$python" -m uv pip install --quiet --compile-bytecode --python "$python" "$@" && return  # as pip does
    say "uv did not succeed; pip tries"
  fi
  "$python" -m pip install --quiet --disable-pip-version-check "$@"
}

setup_venv() {
  local stamp=$venv/.arcflow-requirements digest args=()
  digest=$(cat requirements/*.txt | sha256sum | cut -d' ' -f1)
  for file in "$@"; do args+=(-r "$file"); done
  # One line for every set of files that has been installed from this state of requirements/.
  if [ -x "$venv/bin/python" ] && grep -qxF "$digest $*" "$stamp" 2>/dev/null; then return 0; fi
  if [ ! -x "$venv/bin/python" ]; then
    say "making the virtual environment $venv with $(python3 --version)"
    python3 -m venv "$venv"
  fi
  say "installing Python packages of $* into $venv (the first time this fetches TensorFlow and Spark, about 1 GB)"
  install_packages "${args[@]}"
  if [[ " $* " == *" requirements/dev.txt "* ]]; then install_packages --no-deps -r requirements/dev-no-deps.txt; fi
  echo "$digest $*" >>"$stamp"
}

case ${1:-} in
  apt) shift && setup_apt "$@" ;;
  venv) shift && setup_venv "$@" ;;
  *) echo "usage: $0 apt [package list] | venv <requirements file>..." >&2; exit 2 ;;
esac
