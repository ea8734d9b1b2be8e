# SPDX-License-Identifier: Apache-2.0
"""apply: predictions equal the model's own, every row and column is kept, misfits are said clearly."""

from __future__ import annotations

import os

import numpy as np
import pytest

from arcflow import _signature, errors, inference, saving

pytestmark = [pytest.mark.spark, pytest.mark.tf]


def save(model, path, features=()):
    return saving.save(model, str(path), is_chief=True, exchange=lambda m: [m], features=features)


@pytest.fixture(scope="module")
def model():
    import keras

    keras.utils.set_random_seed(3)
    return keras.Sequential([keras.Input((2, 2)), keras.layers.Flatten(), keras.layers.Dense(3)])


@pytest.fixture(scope="module")
def model_dir(model, tmp_path_factory):
    return save(model, tmp_path_factory.mktemp("model") / "m", ["x"])


@pytest.fixture(scope="module")
def rows(local_spark):
    from pyspark.sql import functions as F

    x = F.array(*[F.col("id").cast("double") + i for i in range(4)])
    return local_spark.range(0, 25, 1, 2).select("id", x.alias("x"), F.lit("kept").alias("note"))


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_predictions_are_the_models_and_all_columns_stay(model, model_dir, rows, tmp_path, kind):
    path = model_dir if kind == "folder" else save(model, tmp_path / "m.keras")
    got = inference.apply(path, rows, inputs="x", batch_size=4)
    assert got.columns == ["id", "x", "note", "prediction"]
    found = got.collect()
    assert [r.id for r in found] == list(range(25))
    assert {r.note for r in found} == {"kept"}
    x = np.array([r.x for r in found], "f4").reshape(-1, 2, 2)
    np.testing.assert_allclose([r.prediction for r in found], model(x), rtol=1e-5)


def test_feature_columns_are_known_from_training(model_dir, rows):
    assert (
        len(inference.apply(model_dir, rows, outputs="logits").select("logits").head().logits) == 3
    )


def test_empty_input_gives_empty_output(model_dir, rows):
    assert inference.apply(model_dir, rows.where("id < 0")).collect() == []


@pytest.fixture(scope="module")
def many_dir(tmp_path_factory):
    import tensorflow as tf

    class Many(tf.Module):
        @tf.function(
            input_signature=[
                tf.TensorSpec([None], tf.string, name="word"),
                tf.TensorSpec([None, None], tf.float32, name="v"),
            ]
        )
        def serve(self, word, v):
            return {
                "upper": tf.strings.upper(word),
                "total": tf.reduce_sum(v, 1),
                "outer": v[:, :, None] * v[:, None, :],
                "long": tf.reduce_sum(v, 1) > 50,
            }

    return save(Many(), tmp_path_factory.mktemp("many") / "m")


def test_several_inputs_and_outputs_of_several_types(many_dir, rows):
    wanted = {"upper": "U", "total": "T", "outer": "O", "long": "L"}
    got = inference.apply(many_dir, rows, inputs={"note": "word", "x": "v"}, outputs=wanted)
    types = dict(got.dtypes)
    assert (types["U"], types["T"], types["L"]) == ("binary", "float", "boolean")
    assert types["O"] == "array<array<float>>"
    last = got.collect()[-1]
    assert bytes(last.U) == b"KEPT"
    assert pytest.approx(sum(last.x)) == last.T
    assert last.L is True
    np.testing.assert_allclose(last.O, np.outer(last.x, last.x))


def test_outputs_get_names_of_their_own_by_default(many_dir, rows):
    got = inference.apply(many_dir, rows, inputs={"note": "word", "x": "v"})
    assert {"prediction_long", "prediction_total"} <= set(got.columns)


def test_a_model_of_somebody_else_is_described_without_importing_tensorflow_here(model_dir, rows):
    os.rename(os.path.join(model_dir, _signature.FILE_NAME), os.path.join(model_dir, "hidden"))
    try:
        got = inference.apply(model_dir, rows, inputs="x")
        assert len(got.head().prediction) == 3
    finally:
        os.rename(os.path.join(model_dir, "hidden"), os.path.join(model_dir, _signature.FILE_NAME))


def test_the_model_is_loaded_once_per_worker_process(model_dir, rows):
    assert inference._load(model_dir) is inference._load(model_dir)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"inputs": "nope"}, "no column 'nope'"),
        ({"inputs": ["x", "id"]}, "another number of columns"),
        ({"inputs": {"x": "no_input"}}, "the model's inputs are"),
        ({"outputs": "note"}, "a column 'note' already"),
        ({"outputs": {"nope": "p"}}, "no output 'nope'"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_misfits_are_refused_before_any_job(model_dir, rows, arguments, says):
    with pytest.raises(errors.InvalidArgumentError, match=says):
        inference.apply(model_dir, rows, **arguments)


def test_unclear_columns_are_asked_for(many_dir, rows):
    with pytest.raises(errors.InvalidArgumentError, match="say inputs="):
        inference.apply(many_dir, rows)


def test_a_missing_model_is_named(rows, tmp_path):
    with pytest.raises(errors.NotFoundError, match="no model at"):
        inference.apply(str(tmp_path / "gone"), rows)


def test_a_folder_without_a_model_says_so(rows, tmp_path):
    with pytest.raises(errors.InvalidArgumentError, match="holds no SavedModel"):
        inference.apply(str(tmp_path), rows)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([[1.0, 2.0, 3.0]], "takes .2, 2. a row"),
        ([None, [1.0, 2.0, 3.0, 4.0]], "1 nulls"),
        ([[1.0, 2.0, None, 4.0]], "nulls inside"),
        ([["a", "b", "c", "d"]], "takes float32"),
    ],
)
def test_rows_that_do_not_fit_name_the_column(model_dir, values, says):
    import pyarrow as pa

    wanted = _signature.read(model_dir)
    task = inference._Predict(
        model_dir, {"x": wanted.inputs[0]}, {wanted.outputs[0].name: "p"}, batch_size=8
    )
    batch = pa.RecordBatch.from_pydict({"x": values})
    with pytest.raises(errors.InvalidArgumentError, match=f"column 'x'.*{says}"):
        list(task([batch]))


def test_a_bad_row_fails_the_job_with_our_message(model_dir, rows):
    from pyspark.errors import PySparkException
    from pyspark.sql import functions as F

    bad = rows.withColumn("x", F.expr("array(1d, 2d, 3d)"))
    with pytest.raises(PySparkException, match="column 'x' has 75 values in 25 rows"):
        inference.apply(model_dir, bad.coalesce(1)).collect()
