# SPDX-License-Identifier: Apache-2.0
"""How many gradients make one update of synchronous training: more than there are nodes, by accumulation."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from ._import_hook import after_import
from ._roles import Roles
from .errors import InvalidArgumentError


def checked(replicas_to_aggregate: Any, roles: Roles) -> int:
    """Return how many steps each node accumulates before an update; 1: none.

    Raises
    ------
    InvalidArgumentError
        No number that synchronous training on these nodes can have; says which it can.
    """
    wanted = replicas_to_aggregate
    if wanted is None:
        return 1
    if isinstance(wanted, bool) or not isinstance(wanted, int) or wanted < 1:
        raise InvalidArgumentError(
            f"replicas_to_aggregate={wanted!r} is not a number of gradients (1 or more)"
        )
    if roles.ps:
        raise InvalidArgumentError(
            f"replicas_to_aggregate={wanted} with ps={roles.ps}: asynchronous updates are made of one "
            "gradient each. Leave one of the two out"
        )
    if roles.workers_serve:
        raise InvalidArgumentError(
            f"replicas_to_aggregate={wanted} with workers_serve=True: the chief alone makes gradients. "
            "Leave one of the two out"
        )
    if wanted < roles.size:
        raise InvalidArgumentError(
            f"replicas_to_aggregate={wanted} is below the {roles.size} nodes that train: an update "
            "that leaves slow nodes out (backup workers) cannot be had, because every node takes part "
            f"in every all-reduce. Say {roles.size} or a multiple, or train on fewer nodes"
        )
    if wanted % roles.size:
        below = wanted // roles.size * roles.size
        raise InvalidArgumentError(
            f"replicas_to_aggregate={wanted} is no multiple of the {roles.size} nodes, which "
            f"contribute alike: say {below} or {below + roles.size}"
        )
    return wanted // roles.size


_steps = 1


def accumulate_when_imported(job: Mapping[str, Any]) -> None:
    """Let the Keras optimizers of this node accumulate as many steps as its job says."""
    global _steps
    _steps = int(job.get("accumulate") or 1)
    if _steps > 1:
        after_import(
            "keras.src.optimizers.base_optimizer", lambda module: _accumulate(module, _steps)
        )


def _accumulate(module: ModuleType, steps: int) -> None:
    stock = module.BaseOptimizer.__init__

    @functools.wraps(stock)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock(self, *args, **kwargs)
        if self.gradient_accumulation_steps not in (None, steps):
            raise InvalidArgumentError(
                f"the optimizer has gradient_accumulation_steps={self.gradient_accumulation_steps}, "
                f"and the cluster's replicas_to_aggregate asks for {steps}: leave one of the two out"
            )
        self.gradient_accumulation_steps = steps

    module.BaseOptimizer.__init__ = init
    after_import("keras.src.backend.tensorflow.optimizer", _reset_within_a_branch)


def _reset_within_a_branch(module: ModuleType) -> None:
    """Let accumulators be reset where Keras does it: in a branch, where replicas cannot meet."""
    import tensorflow as tf

    def reset(self: Any) -> None:
        def update(distribution: Any, accumulators: Any) -> None:
            for one in accumulators:
                distribution.extended.update(
                    one, lambda value: value.assign(tf.zeros_like(value)), group=False
                )

        accumulators = [one.value for one in self._accumulated_gradients if one is not None]
        tf.__internal__.distribute.interim.maybe_merge_call(
            update, self._distribution_strategy, accumulators
        )

    module.TFOptimizer._backend_reset_gradient_accumulators = reset


def accumulates() -> bool:
    """Whether optimizers of this process accumulate because the job says so."""
    return _steps > 1
