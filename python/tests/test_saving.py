# SPDX-License-Identifier: Apache-2.0
"""Saving: the chief's copy appears whole, old models stay until the new one is there, failures reach every node."""

from __future__ import annotations

import json
import os
import threading

import pytest

from arcflow import _signature, errors, saving

pytestmark = pytest.mark.tf


class Exchange:
    """What the coordinator's barrier does, for nodes that are threads of this test."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=60)
        self._said: dict[int, bytes] = {}

    def of(self, rank: int):
        def exchange(message: bytes) -> list[bytes]:
            self._said[rank] = message
            self._barrier.wait()
            answers = [self._said[r] for r in sorted(self._said)]
            self._barrier.wait()
            return answers

        return exchange


@pytest.fixture(scope="module")
def model():
    import keras

    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def alone(message: bytes) -> list[bytes]:
    return [message]


def test_folder_is_a_saved_model_with_keras_file_and_description(model, tmp_path):
    import keras
    import numpy as np
    import tensorflow as tf

    path = saving.save(
        model, str(tmp_path / "m"), is_chief=True, exchange=alone, features=["pixels"]
    )
    signature = _signature.read(path)
    assert signature.features == ("pixels",)
    assert [(t.dtype, t.row_shape) for t in signature.inputs] == [("float32", (4,))]
    assert [(t.dtype, t.row_shape) for t in signature.outputs] == [("float32", (3,))]
    x = np.arange(8, dtype="f4").reshape(2, 4)
    served = tf.saved_model.load(path).signatures["serving_default"]
    name = signature.inputs[0].name
    np.testing.assert_allclose(served(**{name: x})[signature.outputs[0].name], model(x), rtol=1e-6)
    again = keras.models.load_model(os.path.join(path, _signature.KERAS_NAME))
    np.testing.assert_allclose(again(x), model(x), rtol=1e-6)
    assert os.listdir(tmp_path) == ["m"], "no staging folder is left"


def test_single_files_hold_model_or_weights(model, tmp_path):
    import keras
    import numpy as np

    whole = saving.save(model, str(tmp_path / "m.keras"), is_chief=True, exchange=alone)
    weights = saving.save(model, str(tmp_path / "m.weights.h5"), is_chief=True, exchange=alone)
    other = keras.models.load_model(whole)
    other.set_weights([w * 0 for w in other.get_weights()])
    other.load_weights(weights)
    np.testing.assert_array_equal(other.get_weights()[0], model.get_weights()[0])
    assert sorted(os.listdir(tmp_path)) == ["m.keras", "m.weights.h5"]


def test_a_folder_is_replaced_and_nothing_of_the_old_one_is_left(model, tmp_path):
    path = saving.save(model, str(tmp_path / "m"), is_chief=True, exchange=alone)
    (tmp_path / "m" / "old").write_text("")
    saving.save(model, path, is_chief=True, exchange=alone)
    assert "old" not in os.listdir(path)
    assert os.listdir(tmp_path) == ["m"]


def test_module_is_saved_by_its_serve_function(tmp_path):
    import tensorflow as tf

    class Double(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="v")])
        def serve(self, v):
            return {"twice": 2 * v}

    path = saving.save(Double(), str(tmp_path / "m"), is_chief=True, exchange=alone)
    assert [t.name for t in _signature.read(path).outputs] == ["twice"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "name of a folder"),
        ("/", "name of a folder"),
        ("m.h5", "weights.h5"),
        ("s3://b/m", "every node can open"),
    ],
)
def test_impossible_paths_are_refused(model, name, says):
    with pytest.raises(errors.InvalidArgumentError, match=says):
        saving.save(model, name, is_chief=True, exchange=alone)


def test_a_folder_with_other_things_is_not_replaced(model, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    with pytest.raises(errors.InvalidArgumentError, match="other things"):
        saving.save(model, str(tmp_path / "home"), is_chief=True, exchange=alone)
    assert (tmp_path / "home" / "letter.txt").read_text() == "dear"
    assert os.listdir(tmp_path) == ["home"]


def test_hdfs_gets_models_and_files_whole(model, web_hdfs):
    path = saving.save(model, f"{web_hdfs.url}/a/m/", is_chief=True, exchange=alone, features=["x"])
    assert path == f"{web_hdfs.url}/a/m"
    (web_hdfs.root / "a/m/old").write_text("")
    saving.save(model, path, is_chief=True, exchange=alone)
    saving.save(model, f"{web_hdfs.url}/a/m.keras", is_chief=True, exchange=alone)
    saving.save(model, f"{web_hdfs.url}/a/m.keras", is_chief=True, exchange=alone)
    assert _signature.read(str(web_hdfs.root / "a" / "m")).outputs
    assert sorted(os.listdir(web_hdfs.root / "a")) == ["m", "m.keras"]
    assert "old" not in os.listdir(web_hdfs.root / "a/m")


@pytest.mark.parametrize("refused", ["CREATE", "RENAME"])
def test_hdfs_that_breaks_keeps_the_old_model(model, web_hdfs, refused):
    path = saving.save(model, f"{web_hdfs.url}/m", is_chief=True, exchange=alone)
    (web_hdfs.root / "m" / "mark").write_text("")
    web_hdfs.refuse = {refused}
    with pytest.raises(errors.ArcflowError, match=f"{refused} is refused"):
        saving.save(model, path, is_chief=True, exchange=alone)
    assert os.listdir(web_hdfs.root) == ["m"]
    assert "mark" in os.listdir(web_hdfs.root / "m")


def test_a_folder_of_hdfs_with_other_things_is_not_replaced(model, web_hdfs):
    (web_hdfs.root / "home").mkdir()
    (web_hdfs.root / "home" / "letter.txt").write_text("dear")
    for name, says in (("home", "other things"), ("home/letter.txt", "a file of that name")):
        with pytest.raises(errors.InvalidArgumentError, match=says):
            saving.save(model, f"{web_hdfs.url}/{name}", is_chief=True, exchange=alone)
    assert (web_hdfs.root / "home" / "letter.txt").read_text() == "dear"


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(errors.InvalidArgumentError, match="cannot save a list"):
        saving.save([1], str(tmp_path / "m"), is_chief=True, exchange=alone)
    assert os.listdir(tmp_path) == []


def test_all_nodes_return_together_and_only_the_chief_leaves_a_copy(tmp_path, monkeypatch):
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(saving.tempfile, "tempdir", str(scratch))
    written = []

    def fake_write(model, path, features):
        written.append(path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as file:
            file.write("model")

    monkeypatch.setattr(saving, "_write", fake_write)
    exchange, results = Exchange(3), {}

    def node(rank: int) -> None:
        results[rank] = saving.save(
            None, str(tmp_path / "m.keras"), is_chief=rank == 0, exchange=exchange.of(rank)
        )

    run(node, 3)
    assert set(results.values()) == {str(tmp_path / "m.keras")}
    assert len(written) == 3, "every node takes part: variables synchronised on read need all"
    assert sorted(os.listdir(tmp_path)) == ["m.keras", "scratch"]
    assert os.listdir(scratch) == []


@pytest.mark.parametrize("failing", [0, 2])
def test_a_failure_on_one_node_reaches_all_and_leaves_the_old_model(tmp_path, monkeypatch, failing):
    old = tmp_path / "m.keras"
    old.write_text("old")
    here = threading.local()

    def fake_write(model, path, features):
        if here.rank == failing:
            raise OSError("disk full")
        with open(path, "w") as file:
            file.write("new")

    monkeypatch.setattr(saving, "_write", fake_write)
    exchange, raised = Exchange(3), {}

    def node(rank: int) -> None:
        here.rank = rank
        try:
            saving.save(None, str(old), is_chief=rank == 0, exchange=exchange.of(rank))
        except errors.ArcflowError as error:
            raised[rank] = str(error)

    run(node, 3)
    assert sorted(raised) == [0, 1, 2]
    assert all(f"failed on node {failing}: OSError: disk full" in said for said in raised.values())
    assert old.read_text() == "old"
    assert os.listdir(tmp_path) == ["m.keras"]


def test_description_survives_its_file(tmp_path):
    one = _signature.Signature(
        (_signature.Tensor("a", "float32", (None, 3)),),
        (_signature.Tensor("b", "int64", ()),),
        ("x",),
    )
    assert _signature.Signature.from_json(one.to_json()) == one
    with pytest.raises(errors.DataLossError):
        _signature.Signature.from_json(json.dumps({"inputs": 3}))


def run(node, size: int) -> None:
    threads = [threading.Thread(target=node, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
