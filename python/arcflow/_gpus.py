# SPDX-License-Identifier: Apache-2.0
"""Which accelerators a node gets: Spark's word first, then the environment's, then what is there."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from . import errors

_NVIDIA = "CUDA_VISIBLE_DEVICES"
_AMD = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
_SMI_TIMEOUT_S = 20.0
_NONE = ("-1", "none", "void", "nodevfiles")


@dataclasses.dataclass(frozen=True)
class Found:
    """Accelerators that an executor has.

    Attributes
    ----------
    addresses
        Numbers or names (``GPU-…``, ``MIG-…``), as the variable takes them.
    variable
        Environment variable that hides all others from a process.
    where
        Who said so, for messages.
    own
        Whether Spark gave them to this very task, so that nobody else has them.
    per_host
        Whether all nodes of the host see the same list; else those of the executor do.
    """

    addresses: tuple[str, ...]
    variable: str
    where: str
    own: bool = False
    per_host: bool = False


def find(
    resources: Mapping[str, Sequence[str]], environment: Mapping[str, str], root: str = "/"
) -> Found:
    """Find the accelerators of an executor.

    Parameters
    ----------
    resources
        Name to addresses, as Spark gave them to the task.
    environment
        Of the executor.
    root
        Where /proc and /sys are.
    """
    amd = _is_amd(environment, root)
    if addresses := tuple(resources.get("gpu", ())):
        return Found(addresses, _AMD[0] if amd else _NVIDIA, "Spark's task resources", own=True)
    for variable in (*_AMD, _NVIDIA) if amd else (_NVIDIA, *_AMD):
        if (text := environment.get(variable)) is not None:
            names = tuple(name.strip() for name in text.split(",") if name.strip())
            if names and names[0].lower() in _NONE:
                names = ()
            return Found(names, variable, f"{variable}={text}")
    if amd:
        return Found(_amd_devices(root), _AMD[0], "discovery (KFD)", per_host=True)
    return Found(_nvidia_devices(root, environment), _NVIDIA, "discovery (NVIDIA)", per_host=True)


def choose(found: Found, wanted: int, place: int, shared: bool) -> tuple[str, ...]:
    """Return a node's accelerators.

    Parameters
    ----------
    found
        What its executor has.
    wanted
        How many the node shall have.
    place
        Number of the node among those that see the same list, from 0.
    shared
        Whether nodes may have the same ones.

    Raises
    ------
    FailedPreconditionError
        There are not so many.
    """
    first = 0 if found.own or shared else place * wanted
    chosen = found.addresses[first : first + wanted]
    if len(chosen) < wanted:
        nodes = 1 if found.own or shared else place + 1
        there = ", ".join(found.addresses) or "none"
        raise errors.FailedPreconditionError(
            f"gpus={wanted} a node, but {found.where} gives {there} for {nodes} "
            f"node{'s' if nodes > 1 else ''} there: lower gpus=, put fewer nodes on an executor "
            "(spark.task.cpus), ask Spark for more (spark.executor.resource.gpu.amount and "
            "spark.task.resource.gpu.amount), or say share_gpus=True"
        )
    return chosen


def environment_of(found: Found, addresses: Sequence[str]) -> dict[str, str]:
    """Return what to set so that TensorFlow sees these accelerators and no others."""
    return {found.variable: ",".join(addresses) or "-1"}


def nothing() -> dict[str, str]:
    """Return what to set so that TensorFlow sees no accelerator of any kind."""
    return {_NVIDIA: "-1", _AMD[0]: "-1"}


def _is_amd(environment: Mapping[str, str], root: str) -> bool:
    if any(name in environment for name in _AMD) and _NVIDIA not in environment:
        return True
    there = Path(root, "dev/kfd").exists() or Path(root, "sys/class/kfd/kfd").is_dir()
    return there and not Path(root, "proc/driver/nvidia").is_dir()


def _amd_devices(root: str) -> tuple[str, ...]:
    nodes = Path(root, "sys/class/kfd/kfd/topology/nodes").glob("*/gpu_id")
    count = 0
    for path in nodes:
        try:
            count += path.read_text().strip() not in ("", "0")  # processors have the id 0
        except OSError:
            continue
    return tuple(map(str, range(count)))


def _nvidia_devices(root: str, environment: Mapping[str, str]) -> tuple[str, ...]:
    tool = shutil.which("nvidia-smi", path=environment.get("PATH") or os.defpath)
    if tool:
        try:
            said = subprocess.run(
                [tool, "--query-gpu=index", "--format=csv,noheader"],
                capture_output=True,
                text=True,
                timeout=_SMI_TIMEOUT_S,
                check=True,
            ).stdout
            return tuple(line.strip() for line in said.splitlines() if line.strip())
        except (OSError, subprocess.SubprocessError):
            pass  # a driver that does not answer: look at what it registered
    try:
        count = len(os.listdir(Path(root, "proc/driver/nvidia/gpus")))
    except OSError:
        count = 0
    return tuple(map(str, range(count)))
