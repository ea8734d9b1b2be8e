# SPDX-License-Identifier: Apache-2.0
"""How tensors travel between the nodes of a run: the setting, and the report of what was used."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from .errors import InvalidArgumentError

MODES = ("auto", "shm", "tcp", "rdma", "grpc")
# TensorFlow's server protocol for each mode; "grpc" is TensorFlow's own.
_PROTOCOLS = {
    "auto": "grpc+arc",
    "shm": "grpc+arc",
    "tcp": "grpc+arc",
    "rdma": "grpc_rdma",
    "grpc": "grpc",
}

# What values of an all-reduce become between hosts; "" for what they are.
COMPRESSIONS = ("", "bf16", "fp16")

_REPORTED = ("collectives", "outputs", "tensors", "fallbacks")

_settings: dict[str, Any] | None = None


def check_mode(mode: str) -> str:
    """Return `mode`, or raise what is wrong with it.

    Raises
    ------
    InvalidArgumentError
        It is none of `MODES`.
    """
    if mode not in MODES:
        raise InvalidArgumentError(f"transport={mode!r} is not one of {MODES}")
    return mode


def check_compression(compression: str | None, mode: str) -> str:
    """Return the setting for the plug-in, or raise why there cannot be one.

    Raises
    ------
    InvalidArgumentError
        It is none of `COMPRESSIONS`, or nothing of ours goes between hosts with this `mode`.
    """
    if (compression or "") not in COMPRESSIONS:
        raise InvalidArgumentError(
            f"transport_compression={compression!r} is not one of {COMPRESSIONS[1:]} or None"
        )
    if compression and mode in ("shm", "grpc"):
        raise InvalidArgumentError(
            f"transport_compression={compression!r} is for what we send between hosts, and with "
            f"transport={mode!r} that is nothing: use transport='auto', 'tcp' or 'rdma'"
        )
    return compression or ""


def remember(config: Mapping[str, Any]) -> None:
    """Keep what the node's configuration says about the transport, for `arcflow.tf.transport`."""
    global _settings
    job = config.get("job") or {}
    found = job.get("transport")
    if not found or int(config["size"]) < 2:
        _settings = None
        return
    _settings = {
        "ports": [0, 0],
        **found,
        "run_id": str(job.get("run_id", "")),
        "cluster": config.get("cluster"),
    }


def use(
    mode: str,
    secret: str,
    run_id: str = "",
    cluster: Any = None,
    rdma_backend: str = "rdma",
    compression: str = "",
) -> None:
    """Set what `remember` takes from a node's configuration, in a process that is no node.

    Parameters
    ----------
    mode
        One of `MODES`.
    secret
        Hexadecimal, at least 32 digits, the same in all processes.
    run_id, cluster
        As in `Context`.
    compression
        One of `COMPRESSIONS`.
    rdma_backend
        For tests on machines without an RDMA device: ``"ucx"`` has mode ``"rdma"`` go by UCX over
        whatever UCX finds. No setting of a run reaches it.
    """
    global _settings
    _settings = {
        "mode": check_mode(mode),
        "secret": secret,
        "ports": [0, 0],
        "run_id": run_id,
        "cluster": cluster,
        "compression": check_compression(compression, mode),
        "rdma_backend": rdma_backend,
    }


def settings() -> dict[str, Any] | None:
    """Return what was set; None in a process that has no peers."""
    return _settings


def protocol() -> str:
    """TensorFlow's server protocol for this process."""
    return _PROTOCOLS[_settings["mode"]] if _settings and "missing" not in _settings else "grpc"


def do_without(reason: str) -> None:
    """Go on with TensorFlow's gRPC, because the plug-in cannot be had; the report will say so."""
    if _settings is not None:
        _settings["missing"] = reason


def report() -> dict[str, Any]:
    """Tell what this process has used so far.

    Returns
    -------
    dict
        ``mode``, ``protocol``; ``pairs``: for each other rank its ``backend``, and the bytes
        ``sent`` and ``received``; ``collectives``: counters; ``outputs``: how many large outputs
        came from recycled or new memory, or lie where all nodes of the host read them;
        ``tensors``: how many of other tasks were fetched and how many
        of this one's offered, with their bytes, in all and by task; ``fallbacks``: why TensorFlow's
        own transport ran, and how often.
    """
    mode = _settings["mode"] if _settings else "grpc"
    answer: dict[str, Any] = {"mode": mode, "protocol": protocol(), "pairs": {}}
    module = sys.modules.get("arcflow.tf.transport")
    if _settings and "missing" in _settings:
        answer["fallbacks"] = {_settings["missing"]: 1}
        return answer
    stats = module.stats() if module is not None else None
    if stats is None:
        return answer
    answer.update({name: stats[name] for name in _REPORTED})
    for group in stats["groups"]:
        for peer in group["peers"]:
            rank = _rank_of(peer["task"])
            if rank is None:
                continue
            pair = answer["pairs"].setdefault(
                rank, {"backend": peer["backend"], "sent": 0, "received": 0}
            )
            pair["sent"] += peer["sent"]
            pair["received"] += peer["received"]
    return answer


def totals() -> dict[str, int]:
    """Bytes that this process has sent to and received from others, and how often TensorFlow's own transport ran.

    Empty in a process without peers, and until TensorFlow has been started.
    """
    found = report()
    if "collectives" not in found:
        return {}
    pairs, tensors = found["pairs"].values(), found["tensors"]
    return {
        "transport_sent": sum(pair["sent"] for pair in pairs) + tensors["bytes_offered"],
        "transport_received": sum(pair["received"] for pair in pairs) + tensors["bytes_fetched"],
        "transport_fallbacks": sum(found["fallbacks"].values()),
    }


def _rank_of(task: str) -> int | None:
    """Rank of a task such as ``/job:worker/replica:0/task:1``: the chief is 0, workers follow."""
    parts = dict(part.split(":", 1) for part in task.split("/") if ":" in part)
    cluster = (_settings or {}).get("cluster") or {}
    first = {"chief": 0, "worker": len(cluster.get("chief", ()))}
    role = parts.get("job", "")
    return first[role] + int(parts["task"]) if role in first else None
