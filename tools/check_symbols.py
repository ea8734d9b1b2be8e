#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks what the shared libraries of a wheel export and need: `check_symbols.py <folder with one wheel>`.

Exported may be the entry points that Python and TensorFlow look up, nothing else of a library that we link statically,
so that no other library in the process can bind to it. TensorFlow may be needed by tfops only.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ENTRY_POINTS = re.compile(r"^(PyInit__core|TF_InitPlugin|TF_InitKernel|arcflow_transport_\w+)$")
# Defined by every C linker in every library.
LINKER = {"_init", "_fini", "__bss_start", "_edata", "_end"}


def exported(library: Path) -> list[str]:
    """Names that `library` defines for others, demangled."""
    output = subprocess.run(
        ["nm", "-D", "-C", "--defined-only", str(library)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [line.split(" ", 2)[2] for line in output.splitlines() if line.count(" ") >= 2]


def needed(library: Path) -> list[str]:
    """File names of the libraries that `library` is linked to."""
    output = subprocess.run(
        ["readelf", "-d", str(library)], capture_output=True, text=True, check=True
    ).stdout
    return re.findall(r"\(NEEDED\).*\[(.+)\]", output)


def check(folder: Path) -> list[str]:
    faults = []
    libraries = sorted(folder.rglob("*.so"))
    names = [library.name for library in libraries]
    if not any(name.startswith("_core") for name in names):
        faults.append("the wheel has no arcflow/_core*.so")
    if not any(re.search(r"_tf\d+\.\d+\.so$", name) for name in names):
        faults.append("the wheel has no arcflow/tfops/*_tf<minor>.so")
    if not (folder / "arcflow/tfops/libarcflow_filesystem.so").is_file():
        faults.append("the wheel has no arcflow/tfops/libarcflow_filesystem.so")
    if not (folder / "arcflow/bin/arcflow-agent").is_file():
        faults.append("the wheel has no arcflow/bin/arcflow-agent")
    for library in libraries:
        shown = library.relative_to(folder)
        for symbol in exported(library):
            if symbol not in LINKER and not ENTRY_POINTS.match(symbol):
                faults.append(f"{shown} exports {symbol}")
        if library.parent.name != "tfops":
            faults += [
                f"{shown} needs {n}" for n in needed(library) if "tensorflow" in n or "python" in n
            ]
        # Opened at run time: a machine without it runs everything but hdfs://.
        faults += [f"{shown} needs {n}" for n in needed(library) if "curl" in n or "expat" in n]
    return faults


def main() -> int:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    (wheel,) = Path(sys.argv[1]).glob("arcflow-*.whl")
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        faults = check(Path(folder))
    for fault in faults[:40]:
        print(fault)
    print(
        f"symbols: {wheel.name}: {'as they should be' if not faults else f'{len(faults)} faults'}"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
