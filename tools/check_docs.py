#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Checks that every path that a document or a source comment names exists; a ctest runs it.

Looked at: relative links and `inline code` paths in Markdown, `docs/….md` in C++ and Python sources.
`--self-test` proves that the check finds a wrong path.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

TOPS = "cpp|python|docs|cmake|tools|bench|examples|requirements|compat|deploy|jvm|\\.ci"
# Folders that hold nothing of ours.
SKIPPED = {
    "build",
    ".venv",
    ".git",
    ".ccache",
    "node_modules",
    "shared",
    ".mypy_cache",
    ".pytest_cache",
}
# The picture of the whole product names folders that later issues add, and `../shared` is not part of the tree.
PICTURES = {"docs/design/architecture.md", "docs/design/origin.md"}

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
CODE = re.compile(rf"`((?:{TOPS})/[\w./*<>{{}},-]*)`")
TOP_FILE = re.compile(
    r"`((?:README|CONTRIBUTING|CHANGELOG)\.md|pyproject\.toml|Makefile|CMakePresets\.json)`"
)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
DOC_IN_SOURCE = re.compile(r"\bdocs/[\w/-]+\.md\b")


def files(root: Path, *suffixes: str) -> Iterator[Path]:
    for path in sorted(root.rglob("*")):
        if (
            path.suffix in suffixes
            and not SKIPPED & set(path.relative_to(root).parts)
            and path.is_file()
        ):
            yield path


def exists(root: Path, name: str) -> bool:
    """Whether a path with * or {a,b} or <placeholder> in it matches something."""
    name = re.sub(r"<[^>]*>", "*", name)
    match = re.search(r"\{([^}]*)\}", name)
    if match:
        return all(
            exists(root, name[: match.start()] + part + name[match.end() :])
            for part in match[1].split(",")
        )
    if "*" in name:
        return any(root.glob(name.rstrip("/")))
    return (root / name).exists()


def check(root: Path) -> list[str]:
    faults = []
    for path in files(root, ".md"):
        shown = path.relative_to(root).as_posix()
        if shown in PICTURES:
            continue
        text = FENCE.sub(lambda m: "\n" * m[0].count("\n"), path.read_text(encoding="utf-8"))
        for pattern, base in ((LINK, path.parent), (CODE, root), (TOP_FILE, root)):
            for match in pattern.finditer(text):
                if "://" in match[1] or match[1].startswith("mailto:"):
                    continue
                if not exists(base, match[1]):
                    line = text.count("\n", 0, match.start()) + 1
                    faults.append(f"{shown}:{line}: no such path: {match[1]}")
    for path in files(root, ".h", ".cc", ".py", ".cmake"):
        if path.name == Path(__file__).name:
            continue
        text = path.read_text(encoding="utf-8")
        for match in DOC_IN_SOURCE.finditer(text):
            if not (root / match[0]).exists():
                line = text.count("\n", 0, match.start()) + 1
                faults.append(
                    f"{path.relative_to(root).as_posix()}:{line}: no such document: {match[0]}"
                )
    return faults


def self_test() -> int:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "docs").mkdir()
        (root / "docs/a.md").write_text(
            "see [b](b.md), `cpp/none.h` and `docs/{a,c}.md`\n", encoding="utf-8"
        )
        (root / "x.h").write_text("// layout: docs/formats/none.md\n", encoding="utf-8")
        faults = check(root)
    wanted = ("b.md", "cpp/none.h", "docs/{a,c}.md", "docs/formats/none.md")
    missed = [w for w in wanted if not any(f.endswith(w) for f in faults)]
    for name in missed:
        print(f"self-test: the wrong path {name} was not found")
    return 1 if missed or len(faults) != len(wanted) else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--self-test", action="store_true")
    if parser.parse_args().self_test:
        return self_test()
    faults = check(Path(__file__).resolve().parent.parent)
    print("\n".join(faults) or "docs: every path named exists")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
