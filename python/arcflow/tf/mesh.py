# SPDX-License-Identifier: Apache-2.0
"""DTensor over the nodes of a run: each node is a client, and a mesh spans the devices of all."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from .. import errors

if TYPE_CHECKING:
    from ..context import Context


def make(ctx: Context, dims: Mapping[str, int] | None) -> Any:
    """Do what `Context.mesh` says."""
    from tensorflow.experimental import dtensor

    kind = "GPU" if tf.config.list_physical_devices("GPU") else "CPU"
    if _started():
        pass  # a second mesh over the same devices
    elif ctx.size > 1:
        _start(ctx, kind)
    else:
        dtensor.initialize_accelerator_system(kind)
    devices = dtensor.num_global_devices(kind)
    wanted = dict(dims or {"batch": devices})
    if math.prod(wanted.values()) != devices:
        raise errors.InvalidArgumentError(
            f"mesh({wanted}) has {math.prod(wanted.values())} places for the {devices} devices of "
            f"{ctx.size} nodes: the product of its dimensions must be that number"
        )
    return dtensor.create_distributed_mesh(list(wanted.items()), device_type=kind)


def _started() -> bool:
    from tensorflow.dtensor.python import accelerator_util

    return bool(accelerator_util.is_initialized())


def _start(ctx: Context, kind: str) -> None:
    """Start this node's client; DTensor takes who is who from the environment."""
    from tensorflow.experimental import dtensor

    nodes = [where for role in ("chief", "worker") for where in ctx.cluster.get(role, ())]
    os.environ["DTENSOR_JOBS"] = ",".join(nodes)
    os.environ["DTENSOR_CLIENT_ID"] = str(ctx.rank)
    os.environ["DTENSOR_JOB_NAME"] = "worker"
    try:
        dtensor.initialize_accelerator_system(kind)
    except ValueError as error:
        if "already been initialized" not in str(error):
            raise
        raise errors.FailedPreconditionError(
            "ctx.mesh() has to come before the first dataset, tensor or model of the program, and "
            "instead of ctx.strategy(): TensorFlow joins its cluster only while it is untouched"
        ) from error
