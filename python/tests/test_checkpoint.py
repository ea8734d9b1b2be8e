# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: whole or invisible, checked, pruned; restored on all ranks alike; no wrong one ever."""

from __future__ import annotations

import contextlib
import json
import threading

import numpy as np
import pytest
from restart_programs import Number

from arcflow import _checkpoint_files as files
from arcflow import errors
from arcflow.checkpoint import Checkpoint
from arcflow.files import listdir

RUN = "0123456789abcdef"


class Variable(Number):
    """Equal on all ranks."""

    trainable = True


class World:
    """Ranks in threads that meet at barriers as at the coordinator."""

    def __init__(self, size, run_id=RUN, attempt=1, role="worker"):
        self.size, self.run_id, self.attempt, self.role = size, run_id, attempt, role
        self._barrier = threading.Barrier(size)
        self._words = {}

    def run(self, program):
        """What ``program(context)`` returned or raised in each rank."""
        results: list = [None] * self.size

        def one(rank):
            try:
                results[rank] = program(Node(self, rank))
            except Exception as error:
                results[rank] = error

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return results

    def meet(self, rank, name, payload):
        self._words[name, rank] = payload
        self._barrier.wait(30)
        return [self._words[name, other] for other in range(self.size)]


class Node:
    """The part of a context that checkpoints use."""

    def __init__(self, world, rank):
        self._world, self.rank = world, rank
        self.size, self.run_id, self.attempt = world.size, world.run_id, world.attempt
        self.role = world.role if rank or world.role == "evaluator" else "chief"
        self.is_chief = rank == 0 and world.role != "evaluator"
        self.steps, self.said = [], []
        self._link = self

    def busy(self, reason):
        return contextlib.nullcontext()

    def barrier(self, name, payload):
        return self._world.meet(self.rank, name, payload)

    def progress(self, text):
        self.said.append(json.loads(text)["arcflow"])

    def _note_step(self, step, epoch):
        self.steps.append((step, epoch))


def make(node, folder, *objects, **options):
    options = {"every": 2, "keep": 2, "resume": False} | options
    return Checkpoint(node, list(objects), None, str(folder), **options)


def train(folder, *, steps, size=2, attempt=1, run_id=RUN, **options):
    """Make steps on all ranks; returns (shared, own, steps made) of each rank."""

    def program(node):
        shared, own = Variable(0, "shared"), Number(10 * node.rank, "own")
        state = make(node, folder, shared, own, **options)
        made = []
        for _ in state.epochs(3):
            for value in state.batches(iter(range(5))):
                made.append((state.epoch, value))
                shared.assign(shared.numpy() + value)
                own.assign(own.numpy() + 1)
                if len(made) == steps:
                    return int(shared.numpy()), int(own.numpy()), made
        return int(shared.numpy()), int(own.numpy()), made

    return World(size, run_id, attempt).run(program)


@pytest.fixture(params=["local", "hdfs"])
def folder(request, tmp_path, web_hdfs):
    """Where checkpoints go."""
    return f"{web_hdfs.url}/ck" if request.param == "hdfs" else str(tmp_path / "ck")


def test_an_attempt_goes_on_with_the_next_row_and_every_ranks_own_values(folder):
    train(folder, steps=8)  # dies in step 7 (from 0) of all; saved after 6 steps
    assert files.steps_in(folder) == [6, 4]
    (shared, own, made), (other_shared, other_own, other_made) = train(folder, steps=99, attempt=2)
    assert made == other_made
    assert made[0] == (1, 1)  # step 6 is the second of the second epoch
    assert len(made) == 9
    assert shared == other_shared == 3 * sum(range(5))
    assert (own, other_own) == (15, 25)


def test_epochs_as_the_measure(tmp_path):
    train(tmp_path, steps=8, every="epoch")
    assert files.steps_in(str(tmp_path)) == [5]
    (_, _, made), _ = train(tmp_path, steps=99, attempt=2, every="epoch")
    assert made[0] == (1, 0)


def test_what_was_not_finished_is_invisible_and_swept_away(folder):
    train(folder, steps=8)
    staging = files.Staging(folder, files.Staging.new_name())
    staging.make()
    staging.write("variables.bin", [np.zeros(100)])
    assert files.steps_in(folder) == [6, 4]
    train(folder, steps=1, attempt=2)
    assert listdir(folder) == [files.name_of(4), files.name_of(6)]


def test_hdfs_that_breaks_is_an_error_on_every_rank_and_leaves_the_last_one(web_hdfs):
    url = f"{web_hdfs.url}/ck"
    train(url, steps=3)
    web_hdfs.refuse = {"CREATE"}
    for error in train(url, steps=99, attempt=2):
        assert isinstance(error, errors.ArcflowError)
    assert files.newest(url, RUN).step == 2


def test_a_damaged_one_on_hdfs_is_passed_over(web_hdfs):
    url = f"{web_hdfs.url}/ck"
    train(url, steps=8)
    path = web_hdfs.root / "ck" / files.name_of(6) / "variables.bin"
    path.write_bytes(path.read_bytes()[:-1])
    (_, _, made), _ = train(url, steps=99, attempt=2)
    assert made[0] == (0, 4)


@pytest.mark.parametrize("name", ["variables.bin", "rank-1.bin", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
def test_a_damaged_one_is_passed_over(tmp_path, name, damage):
    train(tmp_path, steps=8)
    path = tmp_path / files.name_of(6) / name
    data = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    else:
        data[len(data) // 2] ^= 255
        path.write_bytes(data if damage == "flip" else data[: len(data) // 2])
    (_, _, made), _ = train(tmp_path, steps=99, attempt=2)
    assert made[0] == (0, 4)  # as the checkpoint of step 4 says


def test_a_later_version_is_not_read(tmp_path):
    train(tmp_path, steps=8)
    path = tmp_path / files.name_of(6) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    with pytest.raises(errors.DataLossError, match="version 2; this arcflow reads 1"):
        files.manifest_of(str(tmp_path), 6)


def test_checkpoints_of_another_run_are_never_taken_unasked(tmp_path):
    train(tmp_path, steps=8)
    found = train(tmp_path, steps=99, run_id="another")
    assert all(isinstance(error, errors.FailedPreconditionError) for error in found)
    assert "resume=True" in str(found[0])
    (_, _, made), _ = train(tmp_path, steps=99, run_id="another", resume=True)
    assert made[0] == (1, 1)


def test_another_model_or_another_number_of_nodes_is_refused(tmp_path):
    train(tmp_path, steps=8)
    (error,) = train(tmp_path, steps=1, size=1, attempt=2)
    assert isinstance(error, errors.FailedPreconditionError)
    assert "Use size=2" in str(error)

    def other_model(node):
        return make(node, tmp_path, Variable(0), Number(0), Number(1))

    for error in World(2, attempt=2).run(other_model):
        assert isinstance(error, errors.FailedPreconditionError)
        assert "is of another model: 2 variables there, 3 here" in str(error)


def test_ranks_that_save_at_different_steps_are_told(tmp_path):
    def program(node):
        state = make(node, tmp_path, Variable(0), every=100)
        state.advance(1 + node.rank)
        state.save()

    for error in World(2).run(program):
        assert "ranks save at different steps ([1, 2])" in str(error)
    assert files.steps_in(str(tmp_path)) == []


def test_a_folder_that_cannot_be_written_is_an_error_on_every_rank(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    for error in World(2).run(lambda node: make(node, blocked, Variable(0))):
        assert isinstance(error, errors.ArcflowError)
        assert "File exists" in str(error)


def test_an_evaluator_follows_what_training_writes(tmp_path):
    train(tmp_path, steps=8, keep=5)

    def follow(node):
        shared = Variable(0)  # the others are an optimizer's, for an evaluator
        state = make(node, tmp_path, shared)
        first = state.step, int(shared.numpy()), state.refresh()
        train(tmp_path, steps=99, attempt=2, keep=5)
        second = state.refresh(), state.step, int(shared.numpy()), state.refresh()
        with pytest.raises(errors.UnimplementedError):
            state.advance(2)
        return first, second

    (found,) = World(1, role="evaluator").run(follow)
    assert found == ((6, 10, False), (True, 14, 26, False))


def test_the_driver_hears_where_training_is(tmp_path):
    def program(node):
        state = make(node, tmp_path, Variable(0), every=100)

        class Rows:
            arcflow_source = ("train", 16)

            def skip(self, count):
                return range(count, 4)

            def __iter__(self):
                return iter(range(4))

        for _ in state.epochs(2):
            for _ in state.batches(Rows()):
                pass
        return node.steps[-1], node.said

    (last, said), _ = World(2).run(program)
    assert last == (8, 2)
    assert [one["first_step"] for one in said] == [0, 0, 4]
    assert said[-1] | {"first_step": 0} == {
        "first_step": 0, "feed": "train", "batch": 16, "restored": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every": 0}, "every=0"), ({"every": "week"}, "every='week'"), ({"keep": 0}, "keep=0")],
)
def test_wrong_options_are_refused(tmp_path, options, message):
    (error,) = World(1).run(lambda node: make(node, tmp_path, Variable(0), **options))
    assert isinstance(error, errors.InvalidArgumentError)
    assert message in str(error)


def test_what_has_no_variables_or_no_folder_is_refused(tmp_path):
    for program, message in (
        (lambda node: make(node, tmp_path), "no variables"),
        (lambda node: make(node, tmp_path, object()), "cannot save a object"),
        (lambda node: make(node, "s3://host/there", Variable(0)), "that every node can open"),
    ):
        (error,) = World(1).run(program)
        assert isinstance(error, errors.InvalidArgumentError)
        assert message in str(error)


class Shuffled:
    """Rows that come in an order by seed, as those of a feed do."""

    arcflow_source = ("train", 16)

    def __init__(self, seed):
        self.arcflow_seed = seed
        self.epochs = []

    def set_epoch(self, epoch):
        self.epochs.append(epoch)

    def __iter__(self):
        return iter(range(4))

    def skip(self, count):
        return range(count, 4)


def test_shuffled_rows_are_told_their_epoch_and_go_on_only_in_their_order(tmp_path):
    def begin(node):
        state = make(node, tmp_path, Variable(0))
        for _ in state.batches(Shuffled(3)):
            if state.step == 2:
                return state._position()
        raise AssertionError("the epoch was over")

    def go_on(seed):
        def program(node):
            state, rows = make(node, tmp_path, Variable(0), every=100), Shuffled(seed)
            return [list(state.batches(rows)) for _ in state.epochs(2)], rows.epochs

        return World(2, attempt=2).run(program)

    place = {"name": "train", "batch": 16, "row": 32, "seed": 3}
    assert World(2).run(begin) == [place, place]
    for seed in (4, None):
        for refused in go_on(seed):
            assert isinstance(refused, errors.FailedPreconditionError)
            assert "shuffle=3" in str(refused)
    assert go_on(3) == [([[2, 3], [0, 1, 2, 3]], [0, 1])] * 2
