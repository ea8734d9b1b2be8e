# SPDX-License-Identifier: Apache-2.0
"""What a saved model takes and gives: read from a SavedModel or a .keras file, written as `arcflow.json` beside it.

`python -m arcflow._signature PATH` prints it as JSON: the driver asks a subprocess, because it
never imports TensorFlow.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Iterable
from typing import Any

from . import errors

FILE_NAME = "arcflow.json"
KERAS_NAME = "model.keras"


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One named input or output; `row_shape` leaves out the batch axis, and None in it is a length that varies."""

    name: str
    dtype: str
    row_shape: tuple[int | None, ...]


@dataclasses.dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model, and the DataFrame columns that it was trained on, when known."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    features: tuple[str, ...] = ()

    def to_json(self) -> str:
        """Return the text of `arcflow.json`."""
        return json.dumps({"version": 1, **dataclasses.asdict(self)}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> Signature:
        """Parse the text of `arcflow.json`."""
        try:
            body = json.loads(text)

            def tensors(key: str) -> tuple[Tensor, ...]:
                return tuple(
                    Tensor(t["name"], t["dtype"], tuple(t["row_shape"])) for t in body[key]
                )

            return cls(tensors("inputs"), tensors("outputs"), tuple(body.get("features", ())))
        except (ValueError, KeyError, TypeError) as error:
            raise errors.DataLossError(f"not a model description of Arcflow: {error!r}") from error


def of_saved_model(path: str, features: tuple[str, ...] = ()) -> Signature:
    """Read the serving signature of a SavedModel folder without loading the model.

    Raises
    ------
    InvalidArgumentError
        If there is no SavedModel, or it has no serving signature.
    """
    from tensorflow.python.framework import dtypes
    from tensorflow.python.saved_model import loader_impl

    try:
        proto = loader_impl.parse_saved_model(path)
    except OSError as error:
        raise errors.InvalidArgumentError(f"{path} holds no SavedModel: {error}") from error
    signatures = proto.meta_graphs[0].signature_def
    if "serving_default" not in signatures:
        raise errors.InvalidArgumentError(
            f"the SavedModel in {path} has no signature 'serving_default' (it has {sorted(signatures)}): "
            "export it with signatures={'serving_default': fn}"
        )

    def tensors(infos: Any) -> tuple[Tensor, ...]:
        out = []
        for name in sorted(infos):
            info = infos[name]
            dims = () if info.tensor_shape.unknown_rank else info.tensor_shape.dim[1:]
            shape = tuple(None if d.size < 0 else int(d.size) for d in dims)
            out.append(Tensor(name, dtypes.as_dtype(info.dtype).name, shape))
        return tuple(out)

    serving = signatures["serving_default"]
    return Signature(tensors(serving.inputs), tensors(serving.outputs), features)


def of_keras(model: Any, features: tuple[str, ...] = ()) -> Signature:
    """Describe a built Keras model by its symbolic inputs and outputs."""

    def tensors(named: Iterable[tuple[str, Any]]) -> tuple[Tensor, ...]:
        return tuple(Tensor(n, str(v.dtype), tuple(v.shape[1:])) for n, v in named)

    if not getattr(model, "inputs", None):
        raise errors.InvalidArgumentError(
            "this Keras model has no symbolic inputs (a subclassed model): "
            "save it to a folder with ctx.save instead of a .keras file"
        )
    return Signature(
        tensors((v.name, v) for v in model.inputs),
        tensors((f"output_{i}", v) for i, v in enumerate(model.outputs)),
        features,
    )


def read(path: str) -> Signature | None:
    """Return what `arcflow.json` in the folder says; None when there is none."""
    try:
        with open(os.path.join(path, FILE_NAME), encoding="utf-8") as file:
            return Signature.from_json(file.read())
    except (FileNotFoundError, NotADirectoryError):
        return None


def describe(path: str) -> Signature:
    """Describe any model that `arcflow.apply` can load; imports TensorFlow."""
    if os.path.isdir(path):
        return of_saved_model(path)
    import keras

    return of_keras(keras.models.load_model(path, compile=False))


def _main() -> int:
    try:
        print(describe(sys.argv[1]).to_json())
    except errors.ArcflowError as error:
        print(f"{error.code}: {error.message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
