#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that every C++ include and every Python import goes down the layers; a ctest runs it.

The one list of layers is below. `--self-test` proves that the check finds violations.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tempfile
from pathlib import Path

# Lower layers first; a layer includes itself and those before it (docs/design/architecture.md, section 8).
LAYERS = (
    "base",
    "net",
    "columnar",
    "record",
    "feed",
    "transport",
    "collective",
    "control",
    "hdfs",
    "infer",
)
# Siblings here never include each other.
BACKENDS = "transport"
# What stands on the layers: may include any of them, and nobody includes it.
TOPS = ("agent", "bindings", "plugins", "jni")
# Headers that only one folder may include.
FOREIGN = {
    "tensorflow/": "plugins/tensorflow",
    "nanobind/": "bindings",
    "Python.h": "bindings",
    "jni.h": "jni",
}

# Python: what `import arcflow` must never reach at module level, directly or through a module of ours.
HEAVY = {"tensorflow", "keras", "pyspark", "pandas"}

INCLUDE = re.compile(r'^\s*#\s*include\s+[<"]([^>"]+)[>"]', re.MULTILINE)


def layer_of(path: Path, cpp: Path) -> tuple[str, str]:
    """Return (layer or top folder, backend folder or '')."""
    parts = path.relative_to(cpp).parts
    if parts[0] == "arcflow":
        backend = parts[2] if parts[1] == BACKENDS and len(parts) > 3 else ""
        return parts[1], backend
    return "/".join(parts[:2]) if parts[0] == "plugins" else parts[0], ""


def check_include(where: str, backend: str, header: str) -> str | None:
    for prefix, owner in FOREIGN.items():
        if header.startswith(prefix) and where != owner:
            return f"{header} belongs to cpp/{owner} only"
    parts = header.split("/")
    if parts[0] in TOPS:
        return f"nothing includes cpp/{parts[0]}" if parts[0] != where.split("/")[0] else None
    if parts[0] != "arcflow":
        return None
    if parts[1] not in LAYERS:
        return f"unknown layer {parts[1]!r}"
    if where in LAYERS and LAYERS.index(parts[1]) > LAYERS.index(where):
        return f"layer {where} includes the higher layer {parts[1]}"
    if backend and parts[1] == BACKENDS and len(parts) > 3 and parts[2] != backend:
        return f"backend {backend} includes its sibling {parts[2]}"
    return None


def check_cpp(root: Path) -> list[str]:
    cpp, faults = root / "cpp", []
    for path in sorted([*cpp.rglob("*.h"), *cpp.rglob("*.cc")]):
        where, backend = layer_of(path, cpp)
        if where not in LAYERS and where.split("/")[0] not in TOPS:
            faults.append(f"{path.relative_to(root)}: {where!r} is no layer; add it to the list")
        text = path.read_text(encoding="utf-8")
        for match in INCLUDE.finditer(text):
            if fault := check_include(where, backend, match[1]):
                line = text.count("\n", 0, match.start()) + 1
                faults.append(f"{path.relative_to(root)}:{line}: {fault}")
    return faults


def module_level_imports(tree: ast.Module, package: str) -> list[tuple[int, str]]:
    """Return (line, absolute module) of imports that run when the module is imported."""
    found: list[tuple[int, str]] = []

    def visit(nodes: list[ast.stmt]) -> None:
        for node in nodes:
            if isinstance(node, ast.Import):
                found.extend((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                base = package.split(".")[: len(package.split(".")) - node.level + 1]
                module = ".".join(base + ([node.module] if node.module else []))
                module = module if node.level else (node.module or "")
                found.append((node.lineno, module))
                found.extend((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.If):
                if "TYPE_CHECKING" not in ast.unparse(node.test):
                    visit(node.body)
                visit(node.orelse)
            elif isinstance(node, ast.Try):
                for part in (node.body, node.orelse, node.finalbody):
                    visit(part)
                for handler in node.handlers:
                    visit(handler.body)
            elif isinstance(node, (ast.With, ast.ClassDef)):
                visit(node.body)

    visit(tree.body)
    return found


def check_python(root: Path) -> list[str]:
    """Follow module-level imports from `arcflow`; none may reach TensorFlow, Keras, PySpark or pandas."""
    source = root / "python"
    modules: dict[str, tuple[Path, list[tuple[int, str]]]] = {}
    for path in sorted((source / "arcflow").rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        package = name if is_package else name.rpartition(".")[0]
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        modules[name] = (path, module_level_imports(tree, package))
    faults, seen, queue = [], {"arcflow"}, ["arcflow"]
    while queue:
        name = queue.pop()
        if name not in modules:
            continue
        path, imports = modules[name]
        for line, target in imports:
            if target.split(".")[0] in HEAVY:
                faults.append(
                    f"{path.relative_to(root)}:{line}: `import arcflow` reaches {target}; import it inside a function"
                )
            for known in (target, target.rpartition(".")[0]):
                if known in modules and known not in seen:
                    seen.add(known)
                    queue.append(known)
    return faults


def self_test() -> int:
    cases = {
        "cpp/arcflow/base/a.h": '#include "arcflow/net/packet.h"\n',
        "cpp/arcflow/feed/b.cc": "#include <tensorflow/c/tf_status.h>\n",
        "cpp/arcflow/net/c.cc": '#include "agent/options.h"\n',
        "cpp/arcflow/transport/tcp/d.cc": '#include "arcflow/transport/shm/ring.h"\n',
        "cpp/arcflow/odd/e.cc": "\n",
        "python/arcflow/__init__.py": "from . import deep\n",
        "python/arcflow/deep.py": "import numpy\nif True:\n    import pyspark\n",
    }
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name, text in cases.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        faults = check_cpp(root) + check_python(root)
    missed = [
        n for n in cases if n != "python/arcflow/__init__.py" and not any(n in f for f in faults)
    ]
    for name in missed:
        print(f"self-test: the violation in {name} was not found")
    return 1 if missed else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--self-test", action="store_true")
    if parser.parse_args().self_test:
        return self_test()
    root = Path(__file__).resolve().parent.parent
    faults = check_cpp(root) + check_python(root)
    print("\n".join(faults) or "layers: every include and import goes down")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
