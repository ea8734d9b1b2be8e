# SPDX-License-Identifier: Apache-2.0
"""`arcflow.apply`: batch prediction with a saved model over a DataFrame; every row and column is kept."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _signature, errors

if TYPE_CHECKING:
    from pyspark.sql import DataFrame

_DESCRIBE_TIMEOUT_S = 180
Inputs = str | Sequence[str] | Mapping[str, str] | None
Outputs = str | Mapping[str, str] | None


def apply(
    model_dir: str,
    df: DataFrame,
    *,
    inputs: Inputs = None,
    outputs: Outputs = None,
    batch_size: int = 1024,
) -> DataFrame:
    """Apply a saved model to every row of a DataFrame.

    Parameters
    ----------
    model_dir
        What `ctx.save` wrote: a folder (a SavedModel), or a `.keras` file. The executors must see it under this path.
    df
        The rows. Their order within a partition, and all columns, are kept.
    inputs
        Which columns the model takes: one column; several, in the order of the model's inputs; or a mapping from column
        to input name. By default the columns that the model was trained on, else columns named as the inputs are, else
        the only column there is.
    outputs
        Name of the output column, or a mapping from the model's output names to column names (outputs left out are
        not computed into columns). By default `prediction`, or `prediction_<output>` where there are several.
    batch_size
        Rows in one call of the model.

    Returns
    -------
    DataFrame
        `df` with the output columns added; scalars for outputs of one value a row, nested arrays otherwise. Lazy.

    Raises
    ------
    InvalidArgumentError
        If columns and inputs do not fit, a column of an output's name exists, or the model cannot be described.
    """
    from pyspark.sql.types import StructField, StructType

    if batch_size < 1:
        raise errors.InvalidArgumentError(f"batch_size is {batch_size}; it must be at least 1")
    path = model_dir if "://" in model_dir else os.path.abspath(model_dir)
    signature = _signature.read(path) or _describe(path)
    taken = _match_inputs(signature, df.columns, inputs)
    given = _match_outputs(signature, df.columns, outputs)
    by_name = {t.name: t for t in signature.outputs}
    added = [
        StructField(column, _spark_type(by_name[name]), True) for name, column in given.items()
    ]
    schema = StructType([*df.schema.fields, *added])
    wanted = {t.name: t for t in signature.inputs}
    return df.mapInArrow(
        _Predict(path, {c: wanted[i] for c, i in taken.items()}, given, batch_size), schema
    )


def _describe(path: str) -> _signature.Signature:
    """Ask a subprocess, because the driver does not import TensorFlow."""
    if not os.path.exists(path):
        raise errors.NotFoundError(f"there is no model at {path}")
    try:
        done = subprocess.run(
            [sys.executable, "-m", "arcflow._signature", path],
            capture_output=True, text=True, timeout=_DESCRIBE_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise errors.DeadlineExceededError(
            f"reading the model at {path} took over {_DESCRIBE_TIMEOUT_S} s"
        ) from error
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise errors.InvalidArgumentError(f"cannot read the model at {path}: {last[0]}")
    return _signature.Signature.from_json(done.stdout[done.stdout.index("{") :])


def _match_inputs(
    signature: _signature.Signature, columns: Sequence[str], inputs: Inputs
) -> dict[str, str]:
    """Return the model's input for each DataFrame column that is used."""
    names = [t.name for t in signature.inputs]
    if isinstance(inputs, str):
        inputs = [inputs]
    if inputs is None:
        inputs = _default_inputs(signature, columns, names)
    mapping = (
        dict(inputs) if isinstance(inputs, Mapping) else dict(zip(inputs, names, strict=False))
    )
    if not isinstance(inputs, Mapping) and len(list(inputs)) != len(names):
        raise errors.InvalidArgumentError(
            f"the model takes {len(names)} inputs {names}, but inputs={list(inputs)!r} names another number of columns"
        )
    missing = [c for c in mapping if c not in columns]
    if missing:
        raise errors.InvalidArgumentError(
            f"no column {missing[0]!r} in the DataFrame, which has {list(columns)}; say inputs=… to choose others"
        )
    unknown = sorted(set(mapping.values()) ^ set(names))
    if unknown:
        raise errors.InvalidArgumentError(
            f"the model's inputs are {names}, but inputs={inputs!r} gives {sorted(mapping.values())}"
        )
    return mapping


def _default_inputs(
    signature: _signature.Signature, columns: Sequence[str], names: Sequence[str]
) -> Mapping[str, str] | Sequence[str]:
    features = signature.features
    if features and set(features) == set(names):
        return {f: f for f in features}
    if len(features) == len(names) == 1 or (features and len(features) == len(names)):
        return features
    if all(n in columns for n in names):
        return {n: n for n in names}
    if len(columns) == len(names) == 1:
        return list(columns)
    raise errors.InvalidArgumentError(
        f"cannot tell which columns of {list(columns)} are the model's inputs {list(names)}: "
        "say inputs={column: input, …}"
    )


def _match_outputs(
    signature: _signature.Signature, columns: Sequence[str], outputs: Outputs
) -> dict[str, str]:
    """Return the column name for each model output that is kept."""
    names = [t.name for t in signature.outputs]
    if outputs is None:
        outputs = "prediction" if len(names) == 1 else {n: f"prediction_{n}" for n in names}
    if isinstance(outputs, str):
        if len(names) != 1:
            raise errors.InvalidArgumentError(
                f"the model has {len(names)} outputs {names}: give outputs={{output: column, …}}"
            )
        outputs = {names[0]: outputs}
    for name, column in outputs.items():
        if name not in names:
            raise errors.InvalidArgumentError(f"the model has no output {name!r}; it has {names}")
        if column in columns:
            raise errors.InvalidArgumentError(
                f"the DataFrame has a column {column!r} already: choose another name by outputs=…"
            )
    if not outputs or len(set(outputs.values())) != len(outputs):
        raise errors.InvalidArgumentError(
            f"outputs={dict(outputs)!r} must name at least one output, and no column twice"
        )
    return dict(outputs)


def _spark_type(tensor: _signature.Tensor) -> Any:
    from pyspark.sql import types as t

    simple: dict[str, Callable[[], Any]] = {
        "float16": t.FloatType, "bfloat16": t.FloatType, "float32": t.FloatType, "float64": t.DoubleType,
        "int8": t.ByteType, "int16": t.ShortType, "int32": t.IntegerType, "int64": t.LongType,
        "uint8": t.ShortType, "uint16": t.IntegerType, "uint32": t.LongType,
        "bool": t.BooleanType, "string": t.BinaryType,
    }  # fmt: skip
    if tensor.dtype not in simple:
        raise errors.InvalidArgumentError(
            f"the model's output {tensor.name!r} is of type {tensor.dtype}, which has no Spark type"
        )
    kind = simple[tensor.dtype]()
    shape = (
        tensor.row_shape[1:]
        if tensor.row_shape[-1:] == (1,) and len(tensor.row_shape) == 1
        else tensor.row_shape
    )
    for _ in shape:
        kind = t.ArrayType(kind)
    return kind


class _Predict:
    """The function that each Spark task runs; the model is loaded once per worker process."""

    def __init__(
        self,
        path: str,
        inputs: dict[str, _signature.Tensor],
        outputs: dict[str, str],
        batch_size: int,
    ):
        self.path, self.inputs, self.outputs, self.batch_size = path, inputs, outputs, batch_size

    def __call__(self, batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as pa

        for batch in batches:
            model = _load(self.path)
            for start in range(0, batch.num_rows, self.batch_size):
                rows = batch.slice(start, self.batch_size)
                columns = list(rows.columns)
                names = list(rows.schema.names)
                fed = {t.name: _to_numpy(rows.column(c), c, t) for c, t in self.inputs.items()}
                got = model(fed)
                for name, column in self.outputs.items():
                    columns.append(_to_arrow(np.asarray(got[name]), name, rows.num_rows))
                    names.append(column)
                yield pa.RecordBatch.from_arrays(columns, names=names)


_loaded: dict[tuple[str, int], Callable[[dict[str, np.ndarray]], dict[str, Any]]] = {}


def _load(path: str) -> Callable[[dict[str, np.ndarray]], dict[str, Any]]:
    """Return the model of this process, loading it when it is new or was replaced on disk."""
    main = os.path.join(path, "saved_model.pb") if os.path.isdir(path) else path
    try:
        key = (path, os.stat(main).st_mtime_ns)
    except OSError as error:
        import socket

        raise errors.NotFoundError(
            f"the model {path} cannot be opened on executor host {socket.gethostname()}: {error.strerror}. "
            "Put it on storage that every executor mounts under the same path"
        ) from error
    if key not in _loaded:
        _loaded.clear()  # one model at a time: a replaced one must not stay in memory
        _loaded[key] = _open(path)
    return _loaded[key]


def _open(path: str) -> Callable[[dict[str, np.ndarray]], dict[str, Any]]:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    if not os.path.isdir(path):
        import keras

        model = keras.models.load_model(path, compile=False)

        @tf.function(reduce_retracing=True)
        def by_name(fed: dict[str, Any]) -> dict[str, Any]:
            ordered = [fed[i.name] for i in model.inputs]
            result = model(ordered[0] if len(ordered) == 1 else ordered, training=False)
            return {f"output_{i}": v for i, v in enumerate(tf.nest.flatten(result))}

        return lambda fed: by_name({n: tf.convert_to_tensor(v) for n, v in fed.items()})
    loaded = tf.saved_model.load(path)
    serving = loaded.signatures["serving_default"]

    def call(fed: dict[str, np.ndarray]) -> dict[str, Any]:
        _ = loaded  # the signature does not own the variables; the loaded object does
        return serving(**{n: tf.convert_to_tensor(v) for n, v in fed.items()})

    return call


def _to_numpy(column: Any, name: str, tensor: _signature.Tensor) -> np.ndarray:
    """Return an Arrow column as the array (rows, *row_shape) that the model's input wants."""
    import pyarrow as pa

    if column.null_count:
        raise errors.InvalidArgumentError(
            f"column {name!r} has {column.null_count} nulls, and the model takes none: fill or filter them first"
        )
    rows = len(column)
    if (
        pa.types.is_fixed_size_list(column.type)
        or pa.types.is_list(column.type)
        or pa.types.is_large_list(column.type)
    ):
        values = column.flatten()
        while pa.types.is_nested(values.type):
            values = values.flatten()
        if values.null_count:
            raise errors.InvalidArgumentError(
                f"column {name!r} has nulls inside its arrays, and the model takes none"
            )
        flat = values.to_numpy(zero_copy_only=False)
    else:
        flat = column.to_numpy(zero_copy_only=False)
    wanted = list(tensor.row_shape)
    fixed = int(np.prod([d for d in wanted if d is not None], dtype=np.int64))
    per_row = flat.size // rows if rows else fixed
    open_dims = wanted.count(None)
    fits = per_row * rows == flat.size and (
        per_row == fixed
        if open_dims == 0
        else fixed > 0 and per_row % fixed == 0 and open_dims == 1
    )
    if not fits:
        raise errors.InvalidArgumentError(
            f"column {name!r} has {flat.size} values in {rows} rows, but the model's input "
            f"{tensor.name!r} takes {tuple(wanted)} a row"
        )
    shaped = flat.reshape([rows, *[per_row // max(fixed, 1) if d is None else d for d in wanted]])
    if tensor.dtype == "string":
        return shaped.astype(object)
    if shaped.dtype.kind not in "biuf":
        raise errors.InvalidArgumentError(
            f"column {name!r} is {column.type}, but the model's input {tensor.name!r} takes {tensor.dtype}"
        )
    return shaped.astype(tensor.dtype, copy=False)


def _to_arrow(values: np.ndarray, name: str, rows: int) -> Any:
    """Return the model's output as an Arrow column of one (nested) value a row."""
    import pyarrow as pa

    if values.shape[:1] != (rows,):
        raise errors.InvalidArgumentError(
            f"the model's output {name!r} has shape {values.shape} for {rows} rows: the first axis must be the rows"
        )
    widened = {
        "uint8": np.int16,
        "uint16": np.int32,
        "uint32": np.int64,
        "float16": np.float32,
        "bfloat16": np.float32,
    }
    flat = np.ascontiguousarray(values).reshape(-1)
    flat = flat.astype(widened.get(str(values.dtype), values.dtype), copy=False)
    array = pa.array(flat.tolist(), pa.binary()) if flat.dtype == object else pa.array(flat)
    inner = values.shape[1:] if values.shape[1:] != (1,) else ()
    for axis in range(len(inner) - 1, -1, -1):
        count = int(np.prod((rows, *inner[:axis]), dtype=np.int64))
        offsets = (
            np.arange(0, (count + 1) * inner[axis], inner[axis], dtype=np.int32)
            if inner[axis]
            else np.zeros(count + 1, np.int32)
        )
        array = pa.ListArray.from_arrays(pa.array(offsets), array)
    return array
