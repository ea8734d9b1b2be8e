# SPDX-License-Identifier: Apache-2.0
"""Exchange: each shuffled pass but the first finds other rows on each node, and all rows once on all."""

from __future__ import annotations

import sys

import cloudpickle
import pytest
import restart_programs
from spark_testing import on

from arcflow import Cluster, Feed
from arcflow.errors import InvalidArgumentError

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests
cloudpickle.register_pickle_by_value(restart_programs)
ROWS, PASSES = 600, 4


def read_passes(ctx):
    """The ids of each pass, by ctx.reader and by tf.data."""
    from_reader, from_dataset = [], []
    for _ in range(PASSES):
        rows = []
        for columns, padding in ctx.reader("train", 16, shuffle=5):
            rows += columns["id"][: len(columns["id"]) - padding].tolist()
        from_reader.append(rows)
    dataset = ctx.dataset("train", 16, label=False, shuffle=5)
    for _ in range(PASSES):
        rows = []
        for batch in dataset:
            weights = batch["sample_weight"].numpy()
            rows += batch["id"].numpy()[weights > 0].tolist()
        from_dataset.append(rows)
    return from_reader, from_dataset


def passes_of(spark, feed):
    with Cluster(spark, size=2, progress=False) as cluster:
        result = cluster.run(read_passes, data=feed)
    return result, [value[0] for value in result.values], [value[1] for value in result.values]


def most_mapped(ctx):
    """The most bytes of the agent's memory that this node has mapped at any batch."""
    most = 0
    for _ in range(PASSES):
        for _columns, _padding in ctx.reader("train", 100, shuffle=5):
            mapped = 0
            with open("/proc/self/maps") as maps:
                for line in maps:
                    if "memfd:arcflow-train" in line:
                        begin, end = (int(each, 16) for each in line.split()[0].split("-"))
                        mapped += end - begin
            most = max(most, mapped)
    return most


@on("local")
class TestExchange:
    @pytest.fixture(scope="class")
    def found(self, spark):
        frame = spark.range(0, ROWS, 1, 5).where("id < 520")  # the last partition has fewer rows
        return passes_of(spark, Feed(frame, exchange=True))

    def test_each_pass_has_every_row_once(self, found):
        _, *ways = found
        for first, second in ways:
            for one, other in zip(first, second, strict=True):
                assert (len(one), len(other)) == (260, 260)
                assert sorted(one + other) == list(range(520))

    def test_nodes_have_other_rows_in_each_pass(self, found):
        _, (first, _), _ = found
        sets = [frozenset(rows) for rows in first]
        assert len(set(sets)) == PASSES
        for rows in sets[1:]:
            assert 100 <= len(rows - sets[0]) <= 160  # half of 260

    def test_tensorflow_gets_what_the_reader_gets(self, found):
        _, by_reader, by_dataset = found
        assert by_reader == by_dataset

    def test_every_row_is_accounted_for(self, found):
        result, *_ = found
        told = result.rows["train"]
        for node in told["nodes"]:
            for epoch in node["epochs"]:
                assert epoch["used"] == 260
                assert epoch["dropped"] == epoch["skipped"] == 0
            assert len(node["epochs"]) == 2 * PASSES

    def test_passes_that_are_over_are_not_kept_mapped(self, spark):
        memory = 4 << 20
        rows = spark.range(0, 20_000, 1, 4).selectExpr("id", "array_repeat(double(id), 64) as x")
        feed = Feed(rows, shapes={"x": (64,)}, exchange=True)  # 5 MB a node
        with Cluster(spark, size=2, progress=False, feed_memory=memory) as cluster:
            result = cluster.run(most_mapped, data=feed)
        assert 0 < max(result.values) <= memory

    def test_without_it_rows_stay_where_they_are(self, spark):
        _, (first, _), _ = passes_of(spark, Feed(spark.range(0, ROWS, 1, 5)))
        assert len({frozenset(rows) for rows in first}) == 1

    @pytest.mark.parametrize(
        ("options", "said"), [({"cache": None}, "cache='none'"), ({"balance": False}, "balance")]
    )
    def test_rows_that_cannot_be_exchanged_are_refused(self, spark, options, said):
        with pytest.raises(InvalidArgumentError, match=said):
            Feed(spark.range(3), exchange=True, **options)

    def test_workers_that_do_not_step_together_are_refused(self, spark):
        with (
            Cluster(spark, size=3, ps=1, progress=False) as cluster,
            pytest.raises(InvalidArgumentError, match="exchange=True"),
        ):
            cluster.run(read_passes, data=Feed(spark.range(30), exchange=True))


@on("connect")
@pytest.mark.usefixtures("leftovers")
@pytest.mark.timeout(600)
def test_a_restarted_run_goes_on_in_its_exchanged_pass(spark, tmp_path):
    def totals(name, step, **options):
        feed = Feed(spark.range(0, 230, 1, 5), **options)
        args = {"directory": str(tmp_path / name), "step": step, "how": "node", "shuffle": 3}
        with Cluster(
            spark, size=2, max_restarts=1, restart_backoff=0.1, progress=False, grace=1
        ) as cluster:
            result = cluster.run(restart_programs.count, data=feed, args=args)
        assert len(result.attempts) == (1 if step < 0 else 2)
        return [value["total"] for value in result.values]

    good = totals("good", -1, exchange=True)
    assert totals("again", 18, exchange=True) == good  # 12 steps make a pass
    assert totals("stay", -1) != good
