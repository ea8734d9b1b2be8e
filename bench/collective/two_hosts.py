# SPDX-License-Identifier: Apache-2.0
"""All-reduces between two hosts, which are network namespaces of this machine.

Three questions: is a step faster than Open MPI's over TCP and TensorFlow's over gRPC; how much of a
slow link does it fill; and do two ranks on each of two hosts move n bytes over the link, not 2n. The
last is counted by the kernel, at the link.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from processes import MIB, SYSTEMS, Cluster, Places, shown, steps_for

from harness import interleaved, make_row, note
from network import Network

LINK_MBIT = 1000
MPI_GOAL, LINK_GOAL, BYTES_GOAL = 0.85, 0.85, 1.05


def compare_hosts(sizes: list[int], repeats: int, program: Path | None) -> list[Any]:
    """Rows of two hosts; none without root."""
    if os.geteuid() != 0 or not shutil.which("ip"):
        note("no rows of two hosts: they need root and iproute2")
        return []
    with Network(2) as network, tempfile.TemporaryDirectory(prefix="arcflow-bench-") as folder:
        run_mpi = mpi_between(network, Path(folder), program)
        rows = compare_systems(network, sizes, repeats, run_mpi)
        rows += count_bytes(network, sizes[0], repeats)
        rows += fill_link(network, sizes[0], repeats)
    return rows


def places(network: Network, ranks_each: int) -> Places:
    """Ranks go host by host."""
    return [
        (network.prefix(host), network.address_of(host))
        for host in range(2)
        for _ in range(ranks_each)
    ]


@contextlib.contextmanager
def cluster(system: str, network: Network, ranks_each: int) -> Iterator[Cluster]:
    found = Cluster(
        system, 2 * ranks_each, transport="auto", places=places(network, ranks_each)
    )  # fmt: skip
    try:
        found.answers()  # ready
        yield found
    finally:
        found.close()


def compare_systems(
    network: Network, sizes: list[int], repeats: int, run_mpi: Callable[[int, int], float] | None
) -> list[Any]:
    rows = []
    with contextlib.ExitStack() as stack:
        systems = {name: stack.enter_context(cluster(name, network, 1)) for name in SYSTEMS}
        for size in sizes:
            steps = steps_for(size)
            cases: dict[str, Callable[[], Any]] = {
                name: lambda c=one, n=size, s=steps: c.measure(n, s)
                for name, one in systems.items()
            }
            if run_mpi:
                cases["Open MPI TCP"] = lambda n=size, s=steps: {"ms": run_mpi(n, s)}
            found = interleaved(cases, repeats)
            ms = {name: [one["ms"] for one in values] for name, values in found.items()}
            case = f"all-reduce of {shown(size)}, 2 ranks, two hosts"
            better = [min(two) for two in zip(ms["stock"], ms["stock-whole"], strict=True)]
            rows.append(
                make_row(
                    case, "step", ms["arcflow"], "ms", baseline="the better stock gRPC",
                    baseline_values=better,
                )
            )  # fmt: skip
            if "Open MPI TCP" in ms:
                goal = f"<= {MPI_GOAL} x" if size >= 64 * MIB else None
                rows.append(
                    make_row(
                        case, "step", ms["arcflow"], "ms", baseline="Open MPI TCP",
                        baseline_values=ms["Open MPI TCP"], goal=goal,
                    )
                )  # fmt: skip
            cpu = {name: [one["cpu_ms"] for one in found[name]] for name in SYSTEMS}
            rows.append(
                make_row(
                    case, "CPU of rank 0, a step", cpu["arcflow"], "ms", baseline="stock gRPC",
                    baseline_values=cpu["stock"],
                )
            )  # fmt: skip
        note(json.dumps(systems["arcflow"].report()))
    return rows


def count_bytes(network: Network, size: int, repeats: int) -> list[Any]:
    """How often the bytes of a tensor leave each host in a step of 2 x 2 ranks."""
    times: list[float] = []
    with cluster("arcflow", network, 2) as ours:
        ours.measure(size, 1)
        for _ in range(repeats):
            steps = steps_for(size)
            before = [network.sent_bytes(host) for host in range(2)]
            ours.measure(size, steps)
            for host in range(2):
                times.append((network.sent_bytes(host) - before[host]) / steps / size)
    case = f"all-reduce of {shown(size)}, 2 x 2 ranks, two hosts"
    return [make_row(case, "sent by a host", times, "x n", goal=f"<= {BYTES_GOAL}")]


def fill_link(network: Network, size: int, repeats: int) -> list[Any]:
    """Measure the rate of a step's bytes over a link of 1 Gbit/s, beside iperf3's."""
    if not shutil.which("tc"):
        note("no rows of a slow link: they need tc")
        return []
    network.limit(LINK_MBIT)
    with cluster("arcflow", network, 1) as ours:
        steps = 3
        cases: dict[str, Callable[[], Any]] = {
            # Each host sends n and receives n in a step.
            "arcflow": lambda: size * 8 / 1e3 / ours.measure(size, steps)["ms"],
        }
        if shutil.which("iperf3"):
            cases["iperf3"] = lambda: run_iperf(network)
        else:
            note("no iperf3: apt install it for its row")
        found = interleaved(cases, repeats)
    case = f"all-reduce of {shown(size)}, 2 ranks, two hosts, {LINK_MBIT} Mbit/s"
    goal = f">= {LINK_GOAL} x" if "iperf3" in found else f">= {LINK_GOAL * LINK_MBIT}"
    return [
        make_row(
            case, "rate, each way", found["arcflow"], "Mbit/s",
            baseline="iperf3" if "iperf3" in found else None,
            baseline_values=found.get("iperf3", ()), goal=goal,
        )
    ]  # fmt: skip


def run_iperf(network: Network) -> float:
    """Mbit/s of two seconds from host 1 to host 0."""
    address = network.address_of(0)
    server = subprocess.Popen(
        [*network.prefix(0), "iperf3", "-s", "-1", "-B", address], stdout=subprocess.DEVNULL
    )
    try:
        time.sleep(0.5)
        done = subprocess.run(
            [*network.prefix(1), "iperf3", "-c", address, "-t", "2", "-J"],
            capture_output=True, text=True, timeout=60, check=True,
        )  # fmt: skip
        return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 1e6
    finally:
        server.kill()
        server.wait()


def mpi_between(
    network: Network, folder: Path, program: Path | None
) -> Callable[[int, int], float] | None:
    """Open MPI over the same link: its daemons are started in the namespaces instead of by ssh."""
    if program is None:
        return None
    agent = folder / "agent"
    names = "\n".join(
        f"  {network.address_of(host)}) space={network.name(host)};;" for host in range(2)
    )
    agent.write_text(
        f"""#!/bin/sh
case "$1" in
{names}
  *) exit 1;;
esac
name=$1
shift
# Daemons that have one name would be taken for one host.
exec ip netns exec "$space" unshare --uts sh -c 'hostname "$0"; exec sh -c "$1"' "h-$space" "$*"
"""
    )
    agent.chmod(0o755)
    hosts = ",".join(f"{network.address_of(host)}:1" for host in range(2))
    net = network.address.rsplit(".", 1)[0] + ".0/24"

    def run(size: int, steps: int) -> float:
        command = [
            "mpirun", "--allow-run-as-root", "-np", "2", "-H", hosts,
            "--mca", "plm_rsh_agent", str(agent), "--mca", "pml", "ob1",
            "--mca", "btl", "self,tcp", "--mca", "btl_tcp_if_include", net,
            "--mca", "oob_tcp_if_include", net, str(program), str(size), str(steps),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
        return float(done.stdout.split()[-1])

    return run
