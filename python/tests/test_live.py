# SPDX-License-Identifier: Apache-2.0
"""Nodes that live on: fed, asked and stopped by many Spark jobs, with real agents and nodes."""

from __future__ import annotations

import functools
import operator
import os
import sys
import time

import cloudpickle
import numpy as np
import pytest
import spark_testing

from arcflow import Cluster, Feed, errors

pytestmark = [pytest.mark.usefixtures("leftovers"), pytest.mark.spark, pytest.mark.timeout(300)]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """Classic, with tasks that may fail twice."""
    yield spark_testing.classic_session("local[4,3]", tmp_path_factory.mktemp("live"))
    spark_testing.stop_sessions()


@pytest.fixture
def two(session):
    """Two nodes of one JVM."""
    with Cluster(session, size=2, progress=False, feed_memory="32m", grace=2.0) as cluster:
        yield cluster


@pytest.fixture
def one(session):
    with Cluster(session, size=1, progress=False, feed_memory="32m", grace=2.0) as cluster:
        yield cluster


def numbered(spark, first, last, partitions=4):
    return spark.range(first, last, 1, partitions).selectExpr(
        "id", "array(cast(id as float), cast(-id as float)) as x"
    )


def read_all(ctx):
    """Ids of a feed until it ends."""
    ids = []
    for columns, padding in ctx.reader(ctx.args or "train", 64, remainder="partial"):
        n = len(columns["id"]) - padding
        assert (columns["x"][:n, 0] == columns["id"][:n]).all()
        ids += columns["id"][:n].tolist()
    return ids


def feed_for_ever(cluster, rows):
    for _ in range(1000):
        cluster.feed(rows)


def ids_of(result):
    return sorted(i for value in result.values for i in value)


class TestFeed:
    def test_rows_of_all_calls_arrive_once_and_are_spread_evenly(self, session, two):
        two.start(read_all)
        assert two.feed(numbered(session, 0, 1001)).rows == 1001
        assert two.feed(Feed(numbered(session, 1001, 1100, 3), cache="none")).rows == 99
        assert two.feed(numbered(session, 2000, 2003, 3), epochs=2).rows == 6
        result = two.stop()
        wanted = [*range(1100), *[2000, 2000, 2001, 2001, 2002, 2002]]
        assert ids_of(result) == wanted
        first, second = (len(value) for value in result.values)
        assert abs(first - second) < 20
        assert result.rows["train"]["fed"] == len(wanted)
        assert result.rows["train"]["used"] == len(wanted)

    def test_feeds_are_apart_and_end_one_by_one(self, session, two):
        def both(ctx):
            a = [c["id"].tolist() for c, _ in ctx.reader("a", 1000, remainder="partial")]
            b = [c["id"].tolist() for c, _ in ctx.reader("b", 1000, remainder="partial")]
            return functools.reduce(operator.iadd, a, []), functools.reduce(operator.iadd, b, [])

        two.start(both)
        two.feed(session.range(10), "a")
        two.feed(session.range(10, 30), "b")
        two.end_feed("a")
        with pytest.raises(errors.FailedPreconditionError, match="feed 'a' has ended"):
            two.feed(session.range(3), "a")
        two.feed(session.range(30, 40), "b")
        values = two.stop().values
        assert sorted(i for a, _ in values for i in a) == list(range(10))
        assert sorted(i for _, b in values for i in b) == list(range(10, 40))

    def test_an_rdd_is_fed(self, session, one):
        one.start(
            lambda ctx: [c["y"].tolist() for c, _ in ctx.reader("train", 99, remainder="partial")]
        )
        rdd = session.sparkContext.parallelize([(1.5, 1), (2.5, 2), (3.5, 3)], 2)
        assert one.feed(rdd, schema="x double, y long").rows == 3
        assert sorted(functools.reduce(operator.iadd, one.stop().values[0], [])) == [1, 2, 3]

    def test_more_rows_than_memory_wait_on_disk_until_the_node_reads(self, session, one):
        def late(ctx):
            import time

            time.sleep(3)
            total = 0
            for columns, _padding in ctx.reader("train", 256, remainder="partial"):
                total += int(columns["id"].sum())
                assert columns["blob"].shape[1] == 16384
            return total

        rows = session.range(0, 4000, 1, 4).selectExpr(
            "id", "cast(repeat('x', 65536) as binary) as blob"
        )
        one.start(late)
        feed = Feed(rows, raw={"blob": ("float32", (16384,))}, cache="none")
        assert one.feed(feed).rows == 4000  # 256 MiB through 32
        result = one.stop()
        assert result.values == [sum(range(4000))]
        assert result.metrics["nodes"][0]["feed"]["peak_buffers_bytes"] <= 32 << 20

    def test_a_node_that_has_enough_ends_the_job_and_rows_are_not_read(
        self, session, two, tmp_path
    ):
        def some(ctx):
            columns, _ = next(ctx.reader("train", 10, remainder="partial"))
            ctx.enough("train")
            return len(columns["id"])

        seen = str(tmp_path)

        def slow(batches):
            import os
            import time
            import uuid

            for batch in batches:
                open(os.path.join(seen, uuid.uuid4().hex), "w").close()
                time.sleep(0.2)
                yield batch

        session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "10")
        try:
            rows = session.range(0, 10000, 1, 200).mapInArrow(slow, "id long")
            two.start(some)
            began = time.monotonic()
            fed = two.feed(Feed(rows, probe=False, cache="none"))
        finally:
            session.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
        assert fed.enough
        assert len(os.listdir(seen)) < 500, f"of 1000 batches, after {time.monotonic() - began} s"
        again = (
            two.feed(Feed(rows, probe=False, cache="none")) if not two._live._all_finished else fed
        )
        assert again.enough
        assert len(two.stop().values) == 2

    def test_tensorflow_reads_what_is_fed_later(self, session, two):
        def train(ctx):
            total = 0.0
            for x, y in ctx.dataset("train", 8, features="x", label="id", remainder="partial"):
                assert x.shape[1] == 2
                total += float(y.numpy().sum())
            return total

        two.start(train)
        two.feed(numbered(session, 0, 100))
        time.sleep(1)
        two.feed(numbered(session, 100, 200))
        assert sum(two.stop().values) == sum(range(200))


class TestOnce:
    def test_a_task_that_fails_half_way_feeds_its_rows_once(self, session, two, tmp_path):
        flag = str(tmp_path / "failed")

        def fails_once(batches):
            import os

            for number, batch in enumerate(batches):
                yield batch
                if number == 1 and batch.column(0)[0].as_py() >= 2000:
                    try:
                        os.close(os.open(flag, os.O_CREAT | os.O_EXCL))
                    except FileExistsError:
                        continue
                    raise RuntimeError("injected")

        session.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", "100")
        try:
            rows = session.range(0, 4000, 1, 4).mapInArrow(fails_once, "id long")
            rows = rows.selectExpr("id", "array(cast(id as float), cast(-id as float)) as x")
            two.start(read_all)
            assert two.feed(Feed(rows, shapes={"x": (2,)}, probe=False, cache="none")).rows == 4000
        finally:
            session.conf.unset("spark.sql.execution.arrow.maxRecordsPerBatch")
        assert os.path.exists(flag)
        assert ids_of(two.stop()) == list(range(4000))

    def test_of_two_attempts_of_a_partition_one_counts(self, session, two):
        running = two.start(read_all)
        two.feed(numbered(session, 0, 10))  # the feed is known now
        planned = running._feeds_known.plan("train", numbered(session, 10, 30, 1))
        plan = running._side_plan(planned, "twice")
        running._tell({"act": "job", "job": "twice", "whole": False})

        def both(batches):
            import pyarrow as pa

            from arcflow import _side_task

            rows = list(batches)
            for attempt in (7, 8):
                fed = _side_task._feed(plan, {"partition": 0, "attempt": attempt}, rows)
                yield pa.RecordBatch.from_pydict({"rows": [fed[0]], "counted": [fed[1]]})

        found = planned.frame.mapInArrow(both, "rows long, counted boolean").collect()
        assert [(row.rows, row.counted) for row in found] == [(20, True), (0, False)]
        running._tell({"act": "over", "job": "twice"})
        late = planned.frame.mapInArrow(both, "rows long, counted boolean").collect()
        assert [row.counted for row in late] == [False, False], "the job is over"
        assert ids_of(two.stop()) == list(range(30))


def double(ctx):
    return ctx.serve(lambda columns: {"id": columns["id"], "y": columns["x"][:, 0] * 2})


class TestInfer:
    def test_answers_come_in_order_and_can_be_used_after_the_end(self, session, two):
        two.start(double)
        answers = two.infer(numbered(session, 0, 5000, 6), "id bigint, y float")
        again = two.infer(numbered(session, 0, 10, 1), "y double, id bigint")
        result = two.stop()
        assert [row.id for row in answers.collect()] == list(range(5000))
        assert all(row.y == 2 * row.id for row in answers.collect())
        assert again.columns == ["y", "id"]
        assert again.count() == 10
        assert sum(result.values) == 5010

    def test_a_block_may_have_any_number_of_outputs(self, session, one):
        def some(ctx):
            for block in ctx.requests(batch_size=3):
                even = block.columns["id"][block.columns["id"] % 2 == 0]
                for value in even:
                    block.reply([{"half": int(value) // 2, "name": f"n{value}"}] * 2)
            return "done"

        one.start(some)
        rows = one.infer(session.range(0, 20, 1, 2), "half int, name string").collect()
        assert [row.half for row in rows] == sorted([*range(10), *range(10)])
        assert rows[2].name == "n2"
        assert one.stop().values == ["done"]

    def test_answers_may_be_times(self, session, one):
        one.start(
            lambda ctx: ctx.serve(lambda columns: {"at": columns["at"], "day": columns["day"]})
        )
        rows = session.range(4).selectExpr(
            "timestamp_micros(id * 1000001) as at", "date_add(date'1969-12-31', int(id)) as day"
        )
        answers = one.infer(Feed(rows, cache="none"), "at timestamp, day date")
        one.stop()
        assert answers.collect() == rows.collect()

    def test_a_node_trains_and_answers_at_the_same_time(self, session, one):
        def both(ctx):
            import threading

            seen = []
            reader = threading.Thread(target=lambda: seen.extend(read_all(ctx)))
            reader.start()
            served = ctx.serve(lambda columns: {"seen": np.full(len(columns["id"]), len(seen))})
            reader.join()
            return served, len(seen)

        one.start(both)
        one.feed(numbered(session, 0, 100))
        assert one.infer(session.range(5), "seen bigint").count() == 5
        one.feed(numbered(session, 100, 150))
        assert one.stop().values == [(5, 150)]

    def test_without_a_server_it_is_refused(self, session, one):
        one.start(read_all)
        one.feed(numbered(session, 0, 10))
        with pytest.raises(errors.FailedPreconditionError, match=r"call ctx\.serve"):
            one.infer(session.range(5), "id bigint", timeout=1.0)
        assert len(one.stop().values[0]) == 10

    def test_wrong_answers_are_told(self, session, one):
        one.start(double)
        rows = numbered(session, 0, 5)
        with pytest.raises(
            errors.InvalidArgumentError, match="names column 'z', but the node answered"
        ):
            one.infer(rows, "z float")
        with pytest.raises(
            errors.InvalidArgumentError, match="had the columns id int64, x float32"
        ):
            one.infer(session.range(3), "id bigint")
        one.stop()

    def test_what_the_server_raises_is_the_nodes_failure(self, session, one):
        def broken(ctx):
            ctx.serve(lambda columns: columns["no such column"])

        one.start(broken)
        with pytest.raises(errors.NodeFailedError, match="no such column"):
            one.infer(numbered(session, 0, 5), "id bigint")


class TestRefusals:
    def test_order_of_calls(self, session, one):
        with pytest.raises(errors.FailedPreconditionError, match=r"call start\(\) first"):
            one.feed(session.range(3))
        one.start(read_all)
        for call in (lambda: one.start(read_all), lambda: one.run(read_all)):
            with pytest.raises(errors.FailedPreconditionError, match=r"call stop\(\) first"):
                call()
        one.feed(numbered(session, 0, 3))
        one.stop()
        for call in (one.feed, one.feed_stream, lambda d: one.infer(d, "id bigint")):
            with pytest.raises(errors.FailedPreconditionError, match=r"after stop\(\)"):
                call(numbered(session, 0, 3))

    def test_another_schema_under_the_same_name(self, session, one):
        one.start(read_all)
        one.feed(numbered(session, 0, 3))
        with pytest.raises(errors.InvalidArgumentError, match="now has id int64: a feed keeps"):
            one.feed(session.range(3))
        wider = session.range(3).selectExpr("id", "array(1f, 2f, 3f) as x")
        with pytest.raises(errors.InvalidArgumentError, match="column 'x'"):
            one.feed(wider)
        nulls = session.range(1).selectExpr("cast(null as bigint) as id", "array(1f, 2f) as x")
        with pytest.raises(errors.InvalidArgumentError, match="column 'id': 1 null"):
            one.feed(nulls)
        assert ids_of(one.stop()) == [0, 1, 2]

    def test_what_cannot_be_fed(self, session, one):
        one.start(read_all)
        with pytest.raises(errors.InvalidArgumentError, match="takes a DataFrame or RDD, not list"):
            one.feed([1, 2])
        with pytest.raises(errors.InvalidArgumentError, match="do not tell their columns"):
            one.feed(session.sparkContext.parallelize([1, 2]))
        with pytest.raises(errors.InvalidArgumentError, match="epochs=0"):
            one.feed(numbered(session, 0, 3), epochs=0)
        stream = session.readStream.format("rate").load()
        with pytest.raises(errors.InvalidArgumentError, match="use feed_stream"):
            one.feed(stream)
        with pytest.raises(errors.InvalidArgumentError, match="takes a streaming DataFrame"):
            one.feed_stream(session.range(3))
        one.feed(numbered(session, 0, 3))
        one.stop()

    def test_tasks_on_executors_without_a_node_feed_by_tcp(self, session, two):
        running = two.start(read_all)
        two.feed(numbered(session, 0, 3))
        agents = running._agents
        running._agents = [{**agent, "jvm_pid": 1} for agent in agents]  # as on another executor
        assert two.feed(numbered(session, 3, 2000, 4)).rows == 1997
        assert two.feed(numbered(session, 2000, 2000, 1)).rows == 0
        running._agents = [{**agent, "jvm_pid": 1, "port": 1} for agent in agents]
        with pytest.raises(errors.UnavailableError, match=r"none can be reached.*rank 0 at .*:1"):
            two.feed(numbered(session, 0, 3, 1))
        result = two.stop()
        assert ids_of(result) == list(range(2000))
        assert all(result.values), "tasks take turns"

    def test_clusters_that_cannot_live_on(self, session):
        cluster = Cluster(session, size=1, max_restarts=1, progress=False)
        with pytest.raises(errors.UnimplementedError, match="max_restarts"):
            cluster.start(read_all)

    def test_methods_of_live_nodes_in_a_run(self, one):
        with pytest.raises(
            errors.NodeFailedError, match=r"ctx\.serve\(\) is for nodes of cluster\.start"
        ):
            one.run(lambda ctx: ctx.serve(print))


class TestFailure:
    def test_an_exception_surfaces_from_the_feed_at_hand(self, session, two):
        def breaks(ctx):
            for _columns, _ in ctx.reader("train", 10, remainder="partial"):
                if ctx.rank == 1:
                    raise ValueError("no luck")

        two.start(breaks)
        rows = numbered(session, 0, 1000)
        with pytest.raises(errors.NodeFailedError, match="no luck") as caught:
            feed_for_ever(two, rows)
        assert caught.value.rank == 1
        with pytest.raises(errors.NodeFailedError, match="no luck"):
            two.stop()

    def test_an_exception_surfaces_from_stop(self, session, one):
        def breaks(ctx):
            read_all(ctx)
            raise ValueError("at the end")

        one.start(breaks)
        one.feed(numbered(session, 0, 10))
        with pytest.raises(errors.NodeFailedError, match="at the end"):
            one.stop()

    def test_stopping_before_anything_was_fed_says_so(self, one):
        one.start(read_all)
        with pytest.raises(errors.NodeFailedError, match="before anything was fed to 'train'"):
            one.stop()

    def test_nodes_that_do_not_return_are_ended(self, one):
        def forever(ctx):
            import time

            time.sleep(1000)

        one.start(forever)
        with pytest.raises(errors.DeadlineExceededError, match="did not return within 1 s"):
            one.stop(timeout=1.0)

    def test_a_result_that_is_too_large_is_told(self, one):
        one.start(lambda ctx: bytes(17 << 20))
        with pytest.raises(errors.NodeFailedError, match="over 16 MiB"):
            one.stop()

    def test_large_results_come_whole(self, one):
        def blob(ctx):
            return np.arange(1_000_000)

        one.start(blob)
        assert (one.stop().values[0] == np.arange(1_000_000)).all()

    def test_leaving_the_cluster_ends_the_nodes(self, session):
        def forever(ctx):
            import time

            time.sleep(1000)

        with Cluster(session, size=2, progress=False, grace=1.0) as cluster:
            cluster.start(forever)
            assert len(spark_testing.nodes()) == 2
        spark_testing.wait_for(lambda: not spark_testing.agents_and_nodes(), 20, "end")


class TestStreams:
    def test_every_micro_batch_is_fed_once_although_one_is_tried_twice(
        self, session, two, tmp_path
    ):
        source, state = tmp_path / "in", str(tmp_path / "state")
        for number in range(3):
            numbered(session, number * 100, number * 100 + 100, 2).write.mode("append").parquet(
                str(source)
            )

        files = session.readStream.schema("id long, x array<float>").option("maxFilesPerTrigger", 3)
        rows = files.parquet(str(source))
        two.start(read_all)
        trigger = {"availableNow": True}
        stream = two.feed_stream(rows, checkpoint=state, trigger=trigger)
        assert stream.wait(120)
        assert stream.rows == 300
        assert len(stream.batches) == 2
        # Spark forgets that the last batch was done: it is offered again, and not fed again.
        commits = sorted((tmp_path / "state" / "commits").glob("[0-9]*"))
        commits[-1].unlink()
        (commits[-1].parent / f".{commits[-1].name}.crc").unlink(missing_ok=True)
        numbered(session, 300, 350, 1).write.mode("append").parquet(str(source))
        again = two.feed_stream(rows, checkpoint=state, trigger=trigger)
        assert again.wait(120)
        assert again.rows == 50
        assert ids_of(two.stop()) == list(range(350))

    def test_a_batch_that_fails_feeds_none_of_its_rows(self, session, two, tmp_path):
        source, state = str(tmp_path / "in"), str(tmp_path / "state")
        numbered(session, 0, 100, 4).write.parquet(source)
        broken = str(tmp_path / "broken")
        open(broken, "w").close()

        def breaks(batches):
            import os

            for batch in batches:
                if os.path.exists(broken) and 60 in batch.column(0).to_pylist():
                    raise RuntimeError("a bad record")
                yield batch

        files = session.readStream.schema("id long, x array<float>").parquet(source)
        rows = files.mapInArrow(breaks, "id long, x array<float>")
        two.start(read_all)
        trigger = {"availableNow": True}
        stream = two.feed_stream(rows, checkpoint=state, trigger=trigger)
        with pytest.raises(errors.AbortedError, match="a bad record"):
            stream.wait(120)
        os.unlink(broken)
        again = two.feed_stream(rows, checkpoint=state, trigger=trigger)
        assert again.wait(120)
        assert ids_of(two.stop()) == list(range(100))

    def test_a_running_stream_ends_with_the_run(self, session, one):
        rate = session.readStream.format("rate").option("rowsPerSecond", 50).load()
        one.start(
            lambda ctx: sum(
                len(c["value"]) for c, _ in ctx.reader("train", 10, remainder="partial")
            )
        )
        stream = one.feed_stream(rate.select("value"))
        spark_testing.wait_for(lambda: stream.rows >= 20, 60, "rows of a stream")
        rows = one.stop().values[0]
        assert rows == stream.rows
        assert not stream.query.isActive
