# SPDX-License-Identifier: Apache-2.0
"""The places where Keras asks a strategy, and what we answer there for a ClusterStrategy.

Keras looks these names up at every call, so replacing them in its modules reaches every model. For
any other strategy the replacements call what was there before.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import warnings
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from .. import errors

if TYPE_CHECKING:
    from collections.abc import Callable

_installed = False


class ClusterLike(Protocol):
    """What the seams call; `ClusterStrategy` is the only one that has it."""

    def arc_begin_fit(self, model: Any, callbacks: Any) -> None: ...
    def arc_step_outputs(self, outputs: Any, reduction: str, stock: Callable[..., Any]) -> Any: ...
    def arc_reading_metrics(self, model: Any) -> contextlib.AbstractContextManager[None]: ...
    def arc_resetting_metrics(self, model: Any) -> contextlib.AbstractContextManager[None]: ...


@dataclasses.dataclass(frozen=True)
class Step:
    """A step that Keras hands to ``strategy.run``."""

    kind: str  # "train" or "test"
    model: Any


def install() -> None:
    """Put our answers into Keras's modules, once.

    Raises
    ------
    UnimplementedError
        This Keras does not have the places; the message names its version.
    """
    global _installed
    if _installed:
        return
    import keras

    if keras.backend.backend() != "tensorflow":
        raise errors.FailedPreconditionError(
            f"Keras uses the backend {keras.backend.backend()!r}; a node needs "
            "KERAS_BACKEND=tensorflow, set before keras is imported"
        )
    try:
        from keras.src.backend.tensorflow import trainer
        from keras.src.callbacks.callback_list import CallbackList
        from keras.src.trainers.trainer import Trainer

        stock_reduce = trainer.reduce_per_replica
        stock_init = CallbackList.__init__
        stock_results, stock_reset = Trainer.get_metrics_result, Trainer.reset_metrics
        known = list(inspect.signature(stock_reduce).parameters) == [
            "values",
            "strategy",
            "reduction",
        ]
    except (ImportError, AttributeError):
        known = False
    if not known:
        raise errors.UnimplementedError(
            f"ClusterStrategy does not know Keras {keras.__version__}; it was made for Keras 3.15"
        )

    @functools.wraps(stock_reduce)
    def reduce_per_replica(values: Any, strategy: Any, reduction: str) -> Any:
        if hasattr(strategy, "arc_step_outputs"):
            return cast("ClusterLike", strategy).arc_step_outputs(values, reduction, stock_reduce)
        return stock_reduce(values, strategy, reduction)

    @functools.wraps(stock_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        stock_init(self, *args, **kwargs)
        model = kwargs.get("model")
        strategy = getattr(model, "distribute_strategy", None)
        fitting = kwargs.get("add_history")  # only `fit` asks for it
        if fitting and hasattr(strategy, "arc_begin_fit"):
            _quiet_expected_warnings(kwargs.get("steps"))
            cast("ClusterLike", strategy).arc_begin_fit(model, self.callbacks)

    @functools.wraps(stock_results)
    def get_metrics_result(self: Any) -> Any:
        strategy = getattr(self, "distribute_strategy", None)
        if not hasattr(strategy, "arc_reading_metrics"):
            return stock_results(self)
        with cast("ClusterLike", strategy).arc_reading_metrics(self):
            return stock_results(self)

    @functools.wraps(stock_reset)
    def reset_metrics(self: Any) -> None:
        strategy = getattr(self, "distribute_strategy", None)
        if not hasattr(strategy, "arc_resetting_metrics"):
            return stock_reset(self)
        with cast("ClusterLike", strategy).arc_resetting_metrics(self):
            stock_reset(self)

    trainer.reduce_per_replica = reduce_per_replica
    Trainer.get_metrics_result, Trainer.reset_metrics = get_metrics_result, reset_metrics
    CallbackList.__init__ = init
    _installed = True


def _quiet_expected_warnings(steps_per_epoch: int | None) -> None:
    """Hide Keras's warning that data ran out, where that is how every epoch over a feed ends."""
    action: Literal["ignore", "default"] = "ignore" if steps_per_epoch is None else "default"
    warnings.filterwarnings(action, message="Your input ran out of data")


def describe_step(fn: Any) -> Step | None:
    """Tell what `fn` is when it is a model's ``train_step`` or ``test_step``, else None."""
    import keras

    kind = {"train_step": "train", "test_step": "test"}.get(getattr(fn, "__name__", ""))
    model = getattr(fn, "__self__", None)
    return Step(kind, model) if kind and isinstance(model, keras.Model) else None


def has_own_step(model: Any) -> bool:
    """Whether the model's class defines its own training step; its logs may be anything."""
    import keras

    return type(model).train_step is not keras.Model.train_step
