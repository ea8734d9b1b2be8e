# SPDX-License-Identifier: Apache-2.0
"""One call of `fit` for both ways of training: in step, and over parameter servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from .. import errors

if TYPE_CHECKING:
    from ..context import Context


def fit(model: Any, ctx: Context, data: Callable[[], Any], **options: Any) -> Mapping[str, Any]:
    """Train as the run is: over parameter servers by `fit_async`, else in step by Keras's `fit`.

    Parameters
    ----------
    model, ctx, data
        As for `fit_async`.
    options
        As for `fit_async`; for training in step ``steps_per_epoch`` may be left out (an epoch is
        then one pass), and is each node's own number.
    """
    if ctx._roles.ps:
        from .async_fit import fit_async

        return fit_async(model, ctx, data, **options)
    unwrapped = {
        name: options.pop(name)
        for name in ("directory", "every", "keep", "resume")
        if name in options
    }
    steps = options.get("steps_per_epoch")
    dataset = data() if steps is None else data().repeat()
    if callable(options.get("validation_data")):
        options["validation_data"] = options["validation_data"]()
    options.setdefault("verbose", 0)
    directory = unwrapped.pop("directory", None)
    if directory is not None:
        if steps is not None:
            raise errors.InvalidArgumentError(
                "steps_per_epoch= with directory=, in step: an epoch is one pass; leave the steps out"
            )
        state = ctx.checkpoint(model, directory=directory, **unwrapped)
        return dict(state.fit(dataset, **options))
    callbacks = [*options.pop("callbacks", ()), ctx.callback()]
    return dict(model.fit(dataset, callbacks=callbacks, **options).history)
