# SPDX-License-Identifier: Apache-2.0
"""Restarts: whatever is lost, the run goes on from its newest checkpoint and ends as if nothing had been."""

from __future__ import annotations

import sys

import cloudpickle
import pytest
import restart_programs
import spark_testing
from restart_programs import count, train
from spark_testing import on

from arcflow import Cluster, Feed, _restart, errors
from arcflow._restart import Policy, Position, Supervisor, may_heal

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests
cloudpickle.register_pickle_by_value(restart_programs)
ROWS = 230


def died(rank=1, cause="signal", **fields):
    return errors.NodeFailedError({"rank": rank, "role": "worker", "cause": cause, **fields})


class Script:
    """Attempts that end as a list says, and where they were."""

    def __init__(self, *ends):
        self._ends = list(ends)
        self.where = {}

    def __call__(self, number):
        end, self.where = self._ends[number - 1]
        if isinstance(end, BaseException):
            raise end
        return end

    def run(self, restarts, prepare=lambda: None):
        said = []
        supervisor = Supervisor(Policy(restarts, 0.0), prepare, said.append)
        try:
            return supervisor.run(self, lambda: self.where), supervisor, said
        finally:
            self.attempts = supervisor.attempts


def at(step, **fields):
    return {1: Position(step=step, **fields)}


def test_attempts_are_made_until_one_is_good_and_each_is_told():
    script = Script(
        (died(), at(7)), (died(cause="executor lost"), at(9, restored=5)), ("ok", at(20))
    )
    value, supervisor, said = script.run(2)
    assert value == "ok"
    assert [(a.number, a.step, a.restored, a.cause) for a in supervisor.attempts] == [
        (1, 7, None, "signal"), (2, 9, 5, "executor lost"), (3, None, None, ""),
    ]  # fmt: skip
    assert len(said) == 2
    assert "restart 1 of 2" in said[0]


def test_the_last_failure_is_raised_when_all_restarts_are_used():
    script = Script((died(), at(7)), (died(), at(9)), (died(), at(11)))
    with pytest.raises(errors.NodeFailedError) as caught:
        script.run(2)
    assert type(caught.value) is errors.NodeFailedError
    assert [a.step for a in caught.value.attempts] == [7, 9, 11]


def test_the_same_step_twice_is_a_poison_batch_and_names_its_rows():
    place = at(23, feed="train", batch=10, first_step=20, restored=20)
    script = Script((died(), at(23)), (died(), place), ("never", {}))
    with pytest.raises(errors.PoisonBatchError) as caught:
        script.run(5)
    assert (caught.value.step, caught.value.feed, caught.value.rows) == (23, "train", (30, 39))
    assert "rows 30 to 39 of rank 1's part of feed 'train'" in str(caught.value)
    assert len(caught.value.attempts) == 2


@pytest.mark.parametrize("cause", ["out of memory", "stalled", "exit"])
def test_whatever_a_step_can_do_makes_it_suspect(cause):
    script = Script((died(cause=cause), at(4)), (died(cause=cause), at(4)), ("never", {}))
    with pytest.raises(errors.PoisonBatchError):
        script.run(5)


@pytest.mark.parametrize("cause", ["executor lost", "agent lost", "feeder"])
def test_what_no_step_can_do_is_no_poison(cause):
    script = Script((died(cause=cause), at(0)), (died(cause=cause), at(0)), ("ok", {}))
    assert script.run(2)[0] == "ok"


def test_progress_between_two_deaths_at_one_step_number_clears_the_suspicion():
    script = Script((died(), at(5)), (died(), at(8)), (died(), at(5)), ("ok", {}))
    assert script.run(3)[0] == "ok"


@pytest.mark.parametrize(
    "error",
    [
        errors.InvalidArgumentError("size=0"),
        errors.FailedPreconditionError("versions differ"),
        errors.InternalError("a defect"),
        errors.CancelledError("by the user"),
        errors.RunInterruptedError("Ctrl-C"),
        died(cause="exception", type="ModuleNotFoundError"),
        died(cause="exception", type="TypeError"),
        died(cause="interrupted"),
    ],
)
def test_what_cannot_heal_is_not_tried_again(error):
    assert not may_heal(error)
    script = Script((error, {}), ("never", {}))
    with pytest.raises(type(error)):
        script.run(3)
    assert len(script.attempts) == 1


def test_back_off_grows_up_to_a_bound_and_differs_each_time():
    policy = Policy(10, 1.0)
    delays = [policy.delay_s(4) for _ in range(50)]
    assert len(set(delays)) > 1
    assert all(6 <= delay <= 10 for delay in delays)
    assert max(policy.delay_s(30) for _ in range(50)) <= _restart._MAX_BACKOFF_S * 1.25


def test_a_cluster_that_shrank_for_good_ends_the_run_with_both_errors():
    def too_small():
        raise errors.InvalidArgumentError("size=2, but the cluster runs 1 tasks at once")

    script = Script((died(), at(3)), ("never", {}))
    with pytest.raises(errors.InvalidArgumentError) as caught:
        script.run(3, too_small)
    assert isinstance(caught.value.__cause__, errors.NodeFailedError)


def run_count(spark, folder, *, restarts=2, size=2, host=None, bind=None, feed=None, **args):
    data = feed or spark.range(0, ROWS, 1, 5)
    with Cluster(
        spark, size=size, max_restarts=restarts, restart_backoff=0.1, progress=False, grace=1,
        host=host, bind_host=bind,
    ) as cluster:  # fmt: skip
        return cluster.run(count, data=data, args={"directory": str(folder), **args})


@pytest.fixture(scope="module")
def undisturbed(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    result = run_count(spark, folder, step=-1, how="node")
    assert len(result.attempts) == 1
    return [value["total"] for value in result.values]


@on("standalone", "connect")
@pytest.mark.usefixtures("leftovers")
@pytest.mark.timeout(600)
class TestLosses:
    @pytest.mark.parametrize("what", ["node", "agent", "feeder", "executor", "raise"])
    def test_the_run_goes_on_as_if_nothing_had_been(self, spark, tmp_path, undisturbed, what):
        result = run_count(spark, tmp_path, step=13, how=what)
        assert [value["total"] for value in result.values] == undisturbed
        assert {value["attempt"] for value in result.values} == {2}
        assert {value["began"] for value in result.values} == {10}
        first, second = result.attempts
        assert first.error is not None
        assert second.restored == 10
        if what in ("node", "raise"):
            assert (first.node, first.step) == ("worker:0", 13)
        last = result.values[0]["steps"] // 5 * 5
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            f"checkpoint-{step:012d}" for step in (last - 5, last)
        ]
        assert spark_testing.named_leftovers(tmp_path) == []

    def test_a_lost_chief_is_no_different(self, spark, tmp_path, undisturbed):
        result = run_count(spark, tmp_path, step=13, how="executor", rank=0)
        assert [value["total"] for value in result.values] == undisturbed
        assert len(result.attempts) == 2


@on("connect")
@pytest.mark.usefixtures("leftovers")
@pytest.mark.timeout(600)
def test_the_coordinators_own_node_is_lost_where_the_driver_cannot_be_reached(spark, tmp_path):
    unreachable = {"host": "127.0.0.2", "bind": "127.0.0.1"}
    good = run_count(spark, tmp_path / "good", step=-1, how="node", **unreachable)
    for what in ("agent", "executor"):
        result = run_count(spark, tmp_path / what, step=13, how=what, rank=0, **unreachable)
        assert [v["total"] for v in result.values] == [v["total"] for v in good.values]
        assert {value["began"] for value in result.values} == {10}


@on("local")
@pytest.mark.usefixtures("leftovers")
class TestLocal:
    def test_a_poison_batch_ends_the_run_and_is_named(self, spark, tmp_path):
        with pytest.raises(errors.PoisonBatchError) as caught:
            run_count(spark, tmp_path, restarts=5, step=13, how="raise", deaths=9)
        error = caught.value
        assert len(error.attempts) == 2
        assert (error.rank, error.step, error.feed) == (1, 13, "train")
        steps_of_epoch = -(-ROWS // 20)
        assert error.rows is not None
        assert error.rows[1] - error.rows[0] == 9
        assert error.rows[0] % 10 == 0
        assert 0 <= error.rows[0] // 10 <= steps_of_epoch
        assert "bad row at step 13" in str(error)

    def test_without_restarts_the_first_failure_is_the_end(self, spark, tmp_path):
        with pytest.raises(errors.NodeFailedError) as caught:
            run_count(spark, tmp_path, restarts=0, step=13, how="node")
        assert len(caught.value.attempts) == 1

    def test_two_failures_before_the_first_checkpoint_begin_anew(self, spark, tmp_path):
        result = run_count(spark, tmp_path, step=2, how="agent", deaths=2, every=50)
        assert [a.restored for a in result.attempts] == [None, None, None]
        assert {value["began"] for value in result.values} == {0}

    def test_shuffled_rows_go_on_in_their_order(self, spark, tmp_path):
        plain = run_count(spark, tmp_path / "plain", step=-1, how="node")
        good = run_count(spark, tmp_path / "good", step=-1, how="node", shuffle=3)
        again = run_count(spark, tmp_path / "again", step=8, how="node", shuffle=3)
        totals = [[value["total"] for value in one.values] for one in (plain, good, again)]
        assert totals[0] != totals[1] == totals[2]
        assert {value["began"] for value in again.values} == {5}

    def test_rows_in_the_order_of_a_column(self, spark, tmp_path):
        def ids(ctx):
            return [
                i for c, p in ctx.reader("train", 16) for i in c["id"][: len(c["id"]) - p].tolist()
            ]

        frame = spark.range(0, 200, 1, 7).selectExpr("199 - id as id", "id % 3 as other")
        data = {"train": Feed(frame, order_by="id")}
        with Cluster(spark, size=2, max_restarts=1, progress=False) as cluster:
            result = cluster.run(ids, data=data)
        assert sorted(result.values[0] + result.values[1]) == list(range(200))
        assert all(value == sorted(value) for value in result.values)
        with pytest.raises(errors.InvalidArgumentError, match="order_by names 'nothing'"):
            Feed(frame, order_by=["nothing"]).plan("train")

    def test_rows_and_order_follow_from_the_rows_themselves(self, spark):
        def ids(ctx):
            found = {}
            for name in ("train", "more"):
                found[name] = [
                    i for c, p in ctx.reader(name, 16) for i in c["id"][: len(c["id"]) - p].tolist()
                ]
            return found

        seen = []
        for partitions in (3, 8):
            frame = spark.range(0, 300, 1, partitions)
            with Cluster(spark, size=2, max_restarts=1, progress=False) as cluster:
                data = {"train": frame, "more": frame.selectExpr("id + 1000 as id")}
                seen.append(cluster.run(ids, data=data).values)
        assert seen[0] == seen[1]
        assert sorted(seen[0][0]["train"] + seen[0][1]["train"]) == list(range(300))


@on("local")
@pytest.mark.tf
@pytest.mark.usefixtures("leftovers")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "program",
    [
        "fit",
        pytest.param("loop", marks=pytest.mark.long),
        pytest.param("callback", marks=pytest.mark.long),
    ],
)
def test_weights_after_a_restart_are_those_of_an_undisturbed_run(spark, tmp_path, program):
    data = spark.range(0, ROWS, 1, 5).selectExpr(
        "transform(sequence(1, 4), i -> cast(sin(id * i) as float)) as x",
        "cast(cos(id) as float) as y",
    )

    def run(folder, step):
        with Cluster(
            spark, size=2, max_restarts=1, restart_backoff=0.1, progress=False, start_timeout=300,
            grace=1,
        ) as cluster:  # fmt: skip
            args = {
                "directory": str(tmp_path / folder), "seed": 3, "program": program, "epochs": 3,
                "step": step, "shuffle": False if program == "loop" else 5,
            }  # fmt: skip
            return cluster.run(train, data={"train": Feed(data, shapes={"x": (4,)})}, args=args)

    good = run("good", -1)
    assert len(good.attempts) == 1
    again = run("again", 17)
    if program == "callback":
        assert [value["epochs"] for value in again.values] == [[1, 2], [1, 2]]
        assert 0 < again.values[0]["began"] < 17
    else:
        assert [value["began"] for value in again.values] == [14, 14]
    assert [value["steps"] for value in again.values] == [value["steps"] for value in good.values]
    for left, right in zip(good.values, again.values, strict=True):
        assert left["weights"] == right["weights"]
    rows = again.rows["train"]
    assert (rows["skipped"] > 0) == (program != "callback")
    assert (rows["used"] + rows["skipped"]) % ROWS == 0
