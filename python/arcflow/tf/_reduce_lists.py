# SPDX-License-Identifier: Apache-2.0
"""Gradients reduced where they lie; TensorFlow lays them end to end for one collective, and cuts the sum up."""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from . import transport

# Copying tensors as small as these together costs less than an entry of its own for each.
_SMALL_BYTES = 64 << 10
_DTYPES = (tf.bfloat16, tf.float16, tf.float32, tf.float64, tf.int32, tf.int64)


def install(extended: Any) -> None:
    """Have a strategy's all-reduces of several tensors go as lists, if our transport carries its group.

    A collective of all ranks: it makes the strategy's group, and so learns what carries it.
    Source: `CollectiveReplicaLauncher.batch_all_reduce` of TensorFlow 2.21, which this replaces
    on the strategy's own launchers, in graphs; eagerly TensorFlow reduces one by one.
    """
    launchers = getattr(extended._cross_device_ops, "_launchers", [])  # not TensorFlow's API
    if not launchers or any(
        tf.DeviceSpec.from_string(one._device).device_type != "CPU" for one in launchers
    ):
        return  # NCCL, or staged through the host's memory
    with concurrent.futures.ThreadPoolExecutor(len(launchers)) as pool:  # they wait for each other
        list(pool.map(lambda launcher: launcher.all_reduce(tf.zeros([])), launchers))
    groups = (transport.stats() or {}).get("groups", [])
    carried = {group["name"] for group in groups}
    for launcher in launchers:
        if f"group {launcher._group_key}" in carried:
            stock = launcher.batch_all_reduce
            launcher.batch_all_reduce = functools.partial(_batch_all_reduce, launcher, stock)


def _batch_all_reduce(
    launcher: Any,
    stock: Callable[..., list[Any]],
    packs: Sequence[Sequence[Any]],
    options: Any = None,
) -> list[Any]:
    """As in TensorFlow: a flat list of the sums of all tensors of all packs."""
    if tf.executing_eagerly():
        return stock(packs, options)
    found = []
    for pack in packs:
        tensors = [tf.convert_to_tensor(one) for one in pack]
        sums: list[Any] = [None] * len(tensors)
        for dtype in dict.fromkeys(one.dtype for one in tensors):
            places = [i for i, one in enumerate(tensors) if one.dtype == dtype]
            same = [tensors[i] for i in places]
            if dtype in _DTYPES:
                reduced = _all_reduce(launcher, same, options)
            else:
                reduced = stock([same], options)
            for place, one in zip(places, reduced, strict=True):
                sums[place] = one
        found += sums
    return found


def _all_reduce(launcher: Any, tensors: list[Any], options: Any) -> list[Any]:
    """Sum tensors of one type over all ranks; what is small goes together."""
    small = [i for i, one in enumerate(tensors) if _is_small(one)]
    if len(small) < 2:
        small = []
    large = [i for i in range(len(tensors)) if i not in set(small)]
    with tf.device(launcher._device):
        entries = [tensors[i] for i in large]
        if small:
            entries.append(tf.concat([tf.reshape(tensors[i], [-1]) for i in small], axis=0))
        if len(entries) == 1:
            reduced = [launcher.all_reduce(entries[0], None, options)]
        else:
            options = launcher._options.merge(options)
            token = launcher._get_ordering_token()
            reduced = transport.operations().arcflow_all_reduce_list(
                inputs=entries,
                group_size=launcher._group_size,
                group_key=launcher._group_key,
                instance_key=launcher._next_instance_key(),
                ordering_token=[] if token is None else [token],
                timeout_seconds=options.timeout_seconds or 0,
            )
        sums: list[Any] = [None] * len(tensors)
        for place, one in zip(large, reduced, strict=False):
            sums[place] = one
        if small:
            sizes = [tensors[i].shape.num_elements() for i in small]
            for place, part in zip(small, tf.split(reduced[-1], sizes), strict=True):
                sums[place] = tf.reshape(part, tensors[place].shape)
    return sums


def _is_small(tensor: Any) -> bool:
    elements = tensor.shape.num_elements()
    return elements is not None and elements * tensor.dtype.size < _SMALL_BYTES
