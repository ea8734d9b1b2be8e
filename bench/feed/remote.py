# SPDX-License-Identifier: Apache-2.0
"""Rows to an agent of another host by TCP, against iperf3 in the same minute; hosts are namespaces.

First over a link that is as fast as this machine copies, where sender, receiver and kernel share
its processors; then over one of 10 Gbit/s, as a network has. Needs root, tc, and iperf3
(requirements/apt-bench.txt).
"""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
import uuid
from typing import Any

from children import HERE, Child
from node_functions import wait_for_the_end
from shapes import SHAPES

from harness import Row, interleaved, make_row
from network import Network

SHAPE = "784 float32"
BYTES = 800 << 20
MEMORY_BYTES = 2 << 30
IPERF_SECONDS = 3
LINK_MBIT = 10_000


def _config(secret: bytes, run_id: str, host: str, coordinator: str) -> dict[str, Any]:
    from arcflow import _executor, _run

    address, port = _run.split_address(coordinator)
    path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
    return {
        "run_id": run_id,
        "secret": secret.hex(),
        "rank": 0,
        "size": 1,
        "role": "chief",
        "index": 0,
        "host": host,
        "coordinator": {"host": address, "port": port},
        "python": [sys.executable, "-m", "arcflow._node"],
        "env": {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": "-1"},
        "cwd": str(HERE),
        "versions": _executor.versions(),
        "jvm_pid": os.getpid(),
        "side": True,
        "feeds": {},
        "feed_memory_bytes": MEMORY_BYTES,
        "local_dirs": [tempfile.gettempdir()],
        "heartbeat_s": 1,
        "job": {"run_id": run_id, "live": True},
    }


def _iperf(network: Network) -> float:
    """Bytes a second of one stream from host 1 to host 0."""

    def inside(host: int, *arguments: str) -> list[str]:
        return ["ip", "netns", "exec", network.name(host), "iperf3", *arguments]

    with subprocess.Popen(inside(0, "-s", "-1"), stdout=subprocess.DEVNULL) as server:
        time.sleep(0.3)
        done = subprocess.run(
            inside(1, "-c", network.address_of(0), "-t", str(IPERF_SECONDS), "-J"),
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        server.wait(20)
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"]) / 8


def _port_of(coordinator: Any) -> int:
    """Where the agent takes rows, once it has joined."""
    while (event := coordinator.next_event(60.0)) is not None:
        told = json.loads(event)
        if told["event"] == "joined":
            return int(told["side_port"])
    raise RuntimeError("the agent did not join")


def measure(repeats: int) -> list[Row]:
    rows = []
    with Network(2) as network:
        for encrypt in (False, True):
            rows += _measure(network, encrypt, repeats, "memory's speed")
        network.limit(LINK_MBIT)
        rows += _measure(network, False, repeats, f"{LINK_MBIT // 1000} Gbit/s")
    return rows


def _measure(network: Network, encrypt: bool, repeats: int, link: str) -> list[Row]:
    import cloudpickle

    from arcflow import _core

    shape = SHAPES[SHAPE]
    secret, run_id = secrets.token_bytes(32), uuid.uuid4().hex
    options = json.dumps({"run_id": run_id, "encrypt": encrypt})
    coordinator = _core.Coordinator(network.address, network.address, 0, secret, 1, options)
    config = {
        **_config(secret, run_id, network.address_of(0), coordinator.address),
        "encrypt": encrypt,
    }
    inside = [["ip", "netns", "exec", network.name(host)] for host in range(2)]
    with (
        Child("arcflow_producer.py", within=inside[0]) as launcher,
        Child("remote_producer.py", within=inside[1]) as task,
    ):
        task.call(do="prepare", shape=SHAPE)
        payload = base64.b64encode(cloudpickle.dumps((wait_for_the_end, {}))).decode()
        launcher.call(do="launch", config=config, payload=payload)
        port = _port_of(coordinator)
        launcher.call(do="detach")

        def fed() -> float:
            job = uuid.uuid4().hex[:8]
            coordinator.tell(json.dumps({"act": "job", "job": job, "whole": False}))
            answer = task.call(
                do="feed",
                host=config["host"],
                port=port,
                secret=secret.hex(),
                encrypt=encrypt,
                job=job,
                batches=BYTES // shape.batch_bytes,
            )
            coordinator.tell(json.dumps({"act": "over", "job": job}))  # the rows go
            return float(answer["rows"] * shape.row_bytes / answer["seconds"] / 1e9)

        got = interleaved({"fed": fed, "iperf3": lambda: _iperf(network) / 1e9}, repeats)
        coordinator.stop("CANCELLED", "measured")
        while (event := coordinator.next_event(30.0)) is not None:
            if json.loads(event)["event"] == "all_finished":
                break
    coordinator.close()
    return [
        make_row(
            f"remote feed, one task, {SHAPE}, link of {link}{', TLS' if encrypt else ''}",
            "rows staged",
            got["fed"],
            "GB/s",
            baseline="iperf3, one stream",
            baseline_values=got["iperf3"],
            goal=None if encrypt else ">= 0.85 x",
        )
    ]
