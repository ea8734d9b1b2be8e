# SPDX-License-Identifier: Apache-2.0
"""Input that is not as it should be: a clear error or the right answer, no hang, no row lost or doubled."""

from __future__ import annotations

import json
import mmap
import sys
import threading

import cloudpickle
import numpy as np
import pyarrow as pa
import pytest
import restart_programs
from restart_programs import kill
from spark_testing import on
from test_core import Run, rows

from arcflow import Cluster, Feed, errors

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests
cloudpickle.register_pickle_by_value(restart_programs)

READ = """
    found = {}
    for remainder in ("pad", "drop", "refuse", "partial"):
        reader = _core.FeedReader(fd, "train", 8, remainder)
        found[remainder] = []
        while (batch := reader.next(60)) is not None:
            columns, padding = batch
            found[remainder] += columns["y"][: 8 - padding].tolist()
    link.result(json.dumps(found).encode())
"""


def replaced(batch: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    return batch.set_column(batch.schema.get_field_index(name), name, column)


def test_a_schema_that_changes_between_batches_is_refused_and_costs_no_row():
    good = rows(100, 104)
    changed = {
        "'x'": replaced(good, "x", pa.array([[1.0, 2.0]] * 4, pa.list_(pa.float32(), 2))),
        "'y'": replaced(good, "y", pa.array([1.5] * 4)),
        "'s'": good.drop_columns(["s"]),
    }
    ragged = replaced(
        good, "x", pa.array([[0.0] * n for n in (3, 3, 2, 3)], pa.list_(pa.float32()))
    )
    with Run(1, READ) as run:
        link = run.links[0]
        assert link.write("train", rows(0, 100))
        for column, batch in changed.items():
            with pytest.raises(errors.InvalidArgumentError, match=column):
                link.write("train", batch)
        with pytest.raises(errors.InvalidArgumentError, match=r"'x'.*row 2"):
            link.write("train", ragged)
        assert link.write("train", rows(100, 200))
        link.end("train")
        outcome, result = run.outcome()
    assert outcome["status"] == "ok", outcome
    assert json.loads(result)["partial"] == list(range(200))


def test_streams_without_rows_are_empty_passes_on_all_ranks():
    with Run(2, READ) as run:
        assert run.links[1].write("train", rows(0, 1).slice(0, 0))
        for link in run.links:
            link.end("train")
        for rank in (0, 1):
            outcome, result = run.outcome(rank)
            assert outcome["status"] == "ok", outcome
            assert json.loads(result) == {"pad": [], "drop": [], "refuse": [], "partial": []}


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * mmap.PAGESIZE


def test_a_row_of_three_gigabytes_is_an_error_that_names_it():
    size = 3 << 30
    schema = {"columns": [{"name": "b", "dtype": "string", "source": "scalar", "shape": []}]}
    program = """
        try:
            _core.FeedReader(fd, "train", 2, "partial").next(60)
        except errors.ArcflowError as error:
            link.log("told")
        time.sleep(600)
    """
    memory = mmap.mmap(-1, size + 8)  # nobody reads it, so it takes no memory
    offsets = pa.py_buffer(np.array([0, 4, size + 4, size + 8]))
    column = pa.Array.from_buffers(pa.large_binary(), 3, [None, offsets, pa.py_buffer(memory)])
    batch = pa.RecordBatch.from_arrays([column], names=["b"])
    feeds = {"train": {"schema": schema, "cache": "auto"}}
    with Run(1, program, feeds=feeds) as run:
        before = resident_bytes()
        with pytest.raises(errors.ResourceExhaustedError) as caught:
            run.links[0].write("train", batch)
        assert resident_bytes() - before < 256 << 20
        message = str(caught.value)
        assert f"row 1 of this task has {size} bytes in column 'b'" in message
        assert "raise feed_memory" in message
        run.links[0].abort("RESOURCE_EXHAUSTED", message, "")
        outcome, _ = run.outcome()
    assert outcome["status"] == "failed"
    assert outcome["failure"]["cause"] == "feeder"
    assert message in outcome["failure"]["message"]


def read_all(ctx):
    """The ids that this rank reads; dies once with a batch of its feeder half written."""
    ids = []
    for columns, padding in ctx.reader("train", 10, remainder="partial"):
        if ctx.attempt <= ctx.args["deaths"] and ctx.rank == 1 and len(ids) == 20:
            kill("feeder")
        ids += columns["id"][: len(columns["id"]) - padding].tolist()
    return ids


@on("local")
@pytest.mark.usefixtures("leftovers")
class TestRuns:
    def test_a_feed_without_rows_that_nobody_looked_at_is_an_empty_pass(self, spark):
        feed = Feed(spark.range(0, 10, 1, 2).where("id < 0"), probe=False)
        with Cluster(spark, size=2, progress=False) as cluster:
            result = cluster.run(read_all, data=feed, args={"deaths": 0})
        assert result.values == [[], []]
        assert result.rows["train"]["fed"] == 0
        assert [len(node["epochs"]) for node in result.rows["train"]["nodes"]] == [1, 1]

    def test_a_column_that_is_missing_is_named_before_anything_starts(self, spark):
        df = spark.range(3)
        with (
            Cluster(spark, size=1, progress=False) as cluster,
            pytest.raises(errors.InvalidArgumentError, match="'label', but the DataFrame has id"),
        ):
            cluster.run(read_all, data=Feed(df, columns=["id", "label"]), args={"deaths": 0})

    @pytest.mark.timeout(300)
    @pytest.mark.parametrize("restarts", [0, 1])
    def test_a_feeder_that_dies_in_the_middle_of_a_batch(self, spark, restarts):
        # 4 MB for each node in one batch of Spark's, of which 2 MB fit.
        df = spark.range(0, 4000, 1, 2).selectExpr("id", "array_repeat(float(id), 500) as x")
        feed = Feed(df, cache="none", stable=True)
        spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "10000")
        try:
            with Cluster(
                spark, size=2, feed_memory="2m", max_restarts=restarts, restart_backoff=0.1,
                progress=False, grace=1,
            ) as cluster:  # fmt: skip
                if not restarts:
                    with pytest.raises(errors.NodeFailedError, match="worker:0") as caught:
                        cluster.run(read_all, data=feed, args={"deaths": 1})
                    assert caught.value.cause == "feeder"
                    return
                result = cluster.run(read_all, data=feed, args={"deaths": 1})
        finally:
            spark.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
        assert len(result.attempts) == 2
        assert sorted(result.values[0] + result.values[1]) == list(range(4000))
        assert result.rows["train"]["fed"] == result.rows["train"]["used"] == 4000

    def test_two_runs_at_once_on_the_same_hosts_keep_to_their_own_rows(self, spark):
        found: dict[int, object] = {}

        def one(number):
            try:
                df = spark.range(1000 * number, 1000 * number + 500, 1, 2)
                with Cluster(spark, size=2, progress=False) as cluster:
                    result = cluster.run(read_all, data=df, args={"deaths": 0})
                found[number] = sorted(result.values[0] + result.values[1])
            except BaseException as error:
                found[number] = error

        threads = [threading.Thread(target=one, args=(number,)) for number in (1, 2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(200)
        assert found == {n: list(range(1000 * n, 1000 * n + 500)) for n in (1, 2)}
