# SPDX-License-Identifier: Apache-2.0
"""Compare all-reduces inside a tf.function: ours, TensorFlow's gRPC, and Open MPI in plain C.

Every system is a set of processes that stays up; they measure in turn, so that a change of load
meets them all alike. `--small` shows that all of it runs. The rows of two hosts need root.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(ROOT / "bench")]

from processes import KIB, MIB, SYSTEMS, Cluster, shown, steps_for  # noqa: E402
from two_hosts import compare_hosts  # noqa: E402

from harness import environment, interleaved, make_row, note, print_table, write_json  # noqa: E402

SIZES = (4 * KIB, 64 * KIB, MIB, 4 * MIB, 64 * MIB, 256 * MIB)
# (ranks, bytes) → limit of the ratio to the better stock gRPC, and to Open MPI's shared memory.
STOCK_GOALS = {
    (2, 4 * KIB): 1 / 5,
    (2, 64 * MIB): 1 / 15,
    (2, 256 * MIB): 1 / 15,
    (4, 64 * MIB): 0.1,
}
MPI_GOALS = {(2, 4 * MIB): 1.1, (2, 64 * MIB): 0.35, (2, 256 * MIB): 0.35}
VGG_GOAL = 1 / 12
SOAK_BYTES = 64 * KIB


@contextlib.contextmanager
def clusters(ranks: int, systems: Sequence[str]) -> Iterator[dict[str, Cluster]]:
    found: dict[str, Cluster] = {}
    try:
        for system in systems:
            found[system] = Cluster(system, ranks)
        for cluster in found.values():
            cluster.answers()  # ready
        yield found
    finally:
        for cluster in found.values():
            cluster.close()


def mpi_program(folder: str) -> Path | None:
    """Build the baseline; None when Open MPI is not installed."""
    if not shutil.which("mpicc") or not shutil.which("mpirun"):
        note("no Open MPI: apt install openmpi-bin libopenmpi-dev for its rows")
        return None
    program = Path(folder) / "allreduce"
    subprocess.run(["mpicc", "-O2", "-o", program, HERE / "allreduce.c"], check=True)
    return program


def run_mpi(program: Path, transport: str, ranks: int, size: int, steps: int) -> float:
    command = [
        "mpirun", "--allow-run-as-root", "--oversubscribe", "-np", str(ranks),
        "--mca", "pml", "ob1", "--mca", "btl", f"self,{transport}", program, str(size), str(steps),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    return float(done.stdout.split()[-1])


def compare(
    ranks: int,
    workloads: list[int | str],
    repeats: int,
    program: Path | None,
    names: Sequence[str] = SYSTEMS,
) -> list[Any]:
    """Rows for each size: wall and CPU time of a step, beside all baselines."""
    rows = []
    with clusters(ranks, names) as systems:
        for what in workloads:
            steps = steps_for(what)
            cases: dict[str, Callable[[], Any]] = {
                system: lambda c=cluster, w=what, s=steps: c.measure(w, s)
                for system, cluster in systems.items()
            }
            if program and isinstance(what, int):
                for name, btl in (("Open MPI shm", "vader"), ("Open MPI TCP", "tcp")):
                    cases[name] = lambda b=btl, w=what, s=steps: {
                        "ms": run_mpi(program, b, ranks, w, s)
                    }
            found = interleaved(cases, repeats)
            rows += make_rows(ranks, what, found)
    return rows


def make_rows(ranks: int, what: int | str, found: dict[str, list[Any]]) -> list[Any]:
    name = "VGG-19's 38 gradients" if isinstance(what, str) else shown(what)
    case = f"all-reduce of {name}, {ranks} ranks, one host"
    ms = {system: [one["ms"] for one in values] for system, values in found.items()}
    stock = {"stock": "stock gRPC", "stock-whole": "stock gRPC, whole buffers"}
    stock = {system: words for system, words in stock.items() if system in ms}
    better = [min(one) for one in zip(*(ms[system] for system in stock), strict=True)]
    limit = VGG_GOAL if isinstance(what, str) else STOCK_GOALS.get((ranks, what))
    compared = "the better stock gRPC" if len(stock) > 1 else next(iter(stock.values()))
    rows = [
        make_row(
            case, "step", ms["arcflow"], "ms", baseline=compared, baseline_values=better,
            goal=f"<= {limit:.4f} x" if limit else None,
        )
    ]  # fmt: skip
    for system in ("Open MPI shm", "Open MPI TCP"):
        if system in ms:
            goal = MPI_GOALS.get((ranks, what)) if system == "Open MPI shm" else None
            rows.append(
                make_row(
                    case, "step", ms["arcflow"], "ms", baseline=system,
                    baseline_values=ms[system], goal=f"<= {goal} x" if goal else None,
                )
            )  # fmt: skip
    system, words = next(iter(stock.items()))
    cpu = {name: [one["cpu_ms"] for one in found[name]] for name in ("arcflow", system)}
    rows.append(
        make_row(
            case, "CPU of rank 0, a step", cpu["arcflow"], "ms", baseline=words,
            baseline_values=cpu[system],
        )
    )  # fmt: skip
    return rows


def soak(steps: int) -> list[Any]:
    """Many small steps of one cluster, ours and then TensorFlow's alone: does memory grow."""
    gained = {}
    for system in ("arcflow", "stock"):
        note(f"soak: {system}")
        cluster = Cluster(system, 2)
        try:
            cluster.answers()  # ready
            first = cluster.ask(soak=SOAK_BYTES, steps=steps // 10)["rss_mb"]
            gained[system] = cluster.ask(soak=SOAK_BYTES, steps=steps)["rss_mb"] - first
            if system == "arcflow":
                counted = cluster.report()["collectives"]
        finally:
            cluster.close()
    case = f"{steps:,} all-reduces of {shown(SOAK_BYTES)}, 2 ranks, one host"
    return [
        make_row(case, "memory gained by rank 0", [gained["arcflow"]], "MB",
                 baseline="stock gRPC", baseline_values=[gained["stock"]], goal="<= 5"),
        make_row(case, "mappings of memory in all", [float(counted["mappings"])], ""),
    ]  # fmt: skip


def vgg19(repeats: int) -> list[Any]:
    """One baseline after the other: a stock process takes 5 GB for it."""
    rows = []
    for system in ("stock", "stock-whole"):
        rows += compare(2, ["vgg19"], repeats, None, ("arcflow", system))
    return rows


# What `--only` names.
PARTS: dict[str, Callable[[int, Path | None], list[Any]]] = {
    "two": lambda repeats, mpi: compare(2, [*SIZES], repeats, mpi),
    "small": lambda repeats, mpi: compare(2, [s for s in SIZES if s <= 4 * MIB], repeats, mpi),
    "64MiB": lambda repeats, mpi: compare(2, [64 * MIB], repeats, mpi),
    "vgg19": lambda repeats, mpi: vgg19(repeats),
    "four": lambda repeats, mpi: compare(4, [4 * KIB, 64 * MIB], repeats, mpi),
    "eight": lambda repeats, mpi: compare(8, [64 * MIB], repeats, mpi),
    "hosts": lambda repeats, mpi: compare_hosts([64 * MIB, 256 * MIB], repeats, mpi),
    "soak": lambda repeats, mpi: soak(100_000),
}


# What is run without it.
WHOLE = [part for part in PARTS if part not in ("small", "64MiB")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="two sizes, one repeat: a smoke run")
    parser.add_argument("--only", help=f"some of: {','.join(PARTS)}")
    parser.add_argument("--output", type=Path, default=Path("build/bench/collective.json"))
    args = parser.parse_args()
    env = environment(["tensorflow-cpu", "numpy"])
    rows = []
    with tempfile.TemporaryDirectory(prefix="arcflow-bench-") as folder:
        program = mpi_program(folder)
        if args.small:
            rows += compare(2, [4 * KIB, MIB], 1, program)
            rows += compare_hosts([MIB], 1, program)
            write_json(args.output, env, rows)
        else:
            for part in args.only.split(",") if args.only else WHOLE:
                rows += PARTS[part](args.repeats, program)
                write_json(args.output, env, rows)  # a later part may fail
    print_table(env, rows)


if __name__ == "__main__":
    main()
