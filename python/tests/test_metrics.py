# SPDX-License-Identifier: Apache-2.0
"""Numbers of a run: every row accounted for, rates, Prometheus text and server, TensorBoard scalars."""

from __future__ import annotations

import re
import sys
import time
import urllib.error
import urllib.request

import cloudpickle
import pytest
from spark_testing import on

from arcflow import Cluster, Feed, _metrics, _prometheus, _scalars, errors

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests
SECOND = 1_000_000_000
PASS = {
    "used": 90, "padded": 6, "dropped": 0, "skipped": 10, "steps": 12, "bytes": 9000, "complete": True,
    "wait_ns": SECOND, "compute_ns": 3 * SECOND, "duration_ns": 4 * SECOND,
    "acquire_wait_ns": SECOND // 2, "peak_depth_bytes": 77,
}  # fmt: skip
LOOK = {**PASS, "used": 8, "padded": 0, "skipped": 0, "complete": False}
LAST = {**PASS, "used": 64, "dropped": 36, "skipped": 0, "padded": 0}
FEED = {"rows": 100, "bytes": 12345, "passes": [LOOK, PASS, LAST], "acquire_wait_ns": 2 * SECOND}


def test_every_row_of_a_pass_is_used_dropped_or_skipped():
    found = _metrics.rows_of_node(FEED)
    assert found["fed"] == 100
    assert (found["used"], found["dropped"], found["skipped"], found["padded"]) == (154, 36, 10, 6)
    assert found["unfinished"] == 8
    assert [epoch["fed"] for epoch in found["epochs"]] == [100, 100]


def test_passes_that_are_too_many_to_tell_count_too():
    older = {"used": 1000, "padded": 1, "dropped": 2, "skipped": 3, "unfinished": 4}
    found = _metrics.rows_of_node({**FEED, "older": older})
    assert (found["used"], found["dropped"], found["skipped"], found["padded"]) == (1154, 38, 13, 7)
    assert found["unfinished"] == 12


def test_epochs_have_rates_and_waiting_times():
    found = _metrics.of_feeds([{"rows": {"train": FEED}}, {}, {"rows": {"train": {"rows": 0}}}])
    assert [one["rank"] for one in found["train"]] == [0, 2]
    assert found["train"][1]["epochs"] == []
    first, _ = found["train"][0]["epochs"]
    assert first == {
        "rows": 90, "bytes": 9000, "steps": 12, "seconds": 4.0, "rows_per_s": 22.5,
        "bytes_per_s": 2250.0, "reader_wait_s": 1.0, "compute_s": 3.0, "feed_bound": 0.25,
        "writer_wait_s": 0.5, "peak_depth_bytes": 77,
    }  # fmt: skip
    assert found["train"][0]["writer_wait_s"] == 2.0


SAMPLE = re.compile(r'(arcflow_[a-z_]+)(?:\{((?:[a-z]+="(?:[^"\\\n]|\\.)*",?)*)\})? (\S+)')


def samples(text: str) -> dict:
    """Values by name and labels; every line must be one of Prometheus's text format."""
    found, typed = {}, set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            assert kind in ("counter", "gauge")
            assert name not in typed
            typed.add(name)
        elif not line.startswith("# HELP "):
            match = SAMPLE.fullmatch(line)
            assert match, line
            assert match[1] in typed
            assert (match[1], match[2]) not in found
            found[match[1], match[2]] = float(match[3])
    return found


def test_prometheus_text_has_every_node_and_feed():
    live = _prometheus.Live()
    assert live.text() == ""
    live.begin("abc", 2, ["chief:0", "worker:0"])
    levels = {"rows": 100, "bytes": 4096, "depth_bytes": 7, "acquire_wait_ns": 500_000_000}
    counters = {"steps": 3, "wait_ns": 250_000_000, "user_loss": None}
    live.update([{"rank": 0, "counters": counters, "feeds": {'a"b': levels}, "rss_bytes": 9}])
    live.update([{"rank": 1, "counters": {"steps": 4}, "feeds": {}}])
    live.update([{"rank": 0, "counters": {"steps": 5}, "feeds": {}}])  # what is missing stays
    found = samples(live.text())
    assert found["arcflow_run_info", 'run="abc",attempt="2"'] == 1
    assert found["arcflow_nodes", None] == 2
    assert found["arcflow_node_steps_total", 'rank="0",node="chief:0"'] == 5
    assert found["arcflow_node_steps_total", 'rank="1",node="worker:0"'] == 4
    assert found["arcflow_node_resident_bytes", 'rank="0",node="chief:0"'] == 9
    feed = r'rank="0",node="chief:0",feed="a\"b"'
    assert found["arcflow_feed_rows_total", feed] == 100
    assert found["arcflow_feed_writer_wait_seconds_total", feed] == 0.5
    assert not any(name == "arcflow_node_user_loss" for name, _ in found)
    live.begin("def", 1, ["chief:0"])
    assert samples(live.text())["arcflow_nodes", None] == 0


def get(url: str) -> tuple[str, str]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def test_prometheus_server_answers_until_it_is_closed():
    live = _prometheus.Live()
    live.begin("abc", 1, ["chief:0"])
    server = _prometheus.Server(live, "127.0.0.1", 0)
    kind, text = get(server.url)
    assert kind.startswith("text/plain; version=0.0.4")
    assert text == live.text()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(server.url.replace("/metrics", "/secrets"))
    port = int(server.url.split(":")[2].partition("/")[0])
    with pytest.raises(errors.UnavailableError, match=f"127.0.0.1:{port}"):
        _prometheus.Server(live, "127.0.0.1", port)
    server.close()
    with pytest.raises(urllib.error.URLError):
        get(server.url)


def events_of(folder) -> dict[str, list[tuple[int, float]]]:
    """Scalars by tag, as TensorBoard itself reads them."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    return {
        tag: [(one.step, one.value) for one in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_reads_the_scalars(tmp_path):
    file = _scalars.EventFile(str(tmp_path / "new" / "folder"))
    file.scalars(3, {"arcflow/rows_per_s": 1.5, "loss": -2.0})
    file.scalars(1 << 40, {"loss": 0.25})
    file.close()
    found = events_of(tmp_path / "new" / "folder")
    assert found == {"arcflow/rows_per_s": [(3, 1.5)], "loss": [(3, -2.0), (1 << 40, 0.25)]}


def test_scalars_are_written_at_ends_of_passes_and_at_the_end(tmp_path):
    now = dict.fromkeys(
        ("steps", "rows_used", "bytes_used", "rows_fed", "wait_ns", "compute_ns", "epochs"), 0
    ) | {"feeder_wait_ns": 0, "depth_bytes": 11}
    scalars = _scalars.Scalars(_scalars.EventFile(str(tmp_path)), lambda: dict(now), 0.05)
    now |= {"steps": 4, "rows_used": 100, "epochs": 1, "wait_ns": 30, "compute_ns": 10}
    deadline = time.monotonic() + 60
    while not events_of(tmp_path).get("arcflow/feed_bound") and time.monotonic() < deadline:
        time.sleep(0.05)
    now["steps"] = 9
    scalars.close()
    found = events_of(tmp_path)
    assert found["arcflow/feed_bound"] == [(4, 0.75)]
    assert max(value for _, value in found["arcflow/rows_per_s"]) > 0
    assert found["arcflow/depth_bytes"][-1] == (9, 11)


def test_what_the_transport_moved_is_a_rate(tmp_path):
    now = {"steps": 1, "wait_ns": 0, "compute_ns": 0, "epochs": 0, "transport_fallbacks": 2}
    scalars = _scalars.Scalars(_scalars.EventFile(str(tmp_path)), lambda: dict(now), 60)
    now |= {"transport_sent": 5_000_000}  # from the moment when TensorFlow has its server
    scalars.close()
    found = events_of(tmp_path)
    assert found["arcflow/transport_sent_bytes_per_s"][-1][1] > 0
    assert found["arcflow/transport_fallbacks"] == [(1, 2)]
    assert "arcflow/transport_received_bytes_per_s" not in found


def test_a_folder_that_cannot_be_made_ends_no_run(tmp_path, capfd):
    (tmp_path / "file").touch()
    config = {
        "role": "worker",
        "index": 1,
        "job": {"metrics_dir": str(tmp_path / "file"), "run_id": "r"},
    }
    with _scalars.written(None, config):
        pass
    assert f"no metrics in {tmp_path}/file/r/worker-1" in capfd.readouterr().err


def test_a_node_writes_beside_its_summaries_unless_these_are_remote(tmp_path):
    config = {"role": "chief", "index": 0, "job": {"run_id": "r"}}
    board = {"dir": str(tmp_path), "host": "127.0.0.1", "port": 0, "where": "auto"}
    assert _scalars.folders_of(config) == []
    config["job"]["tensorboard"] = board
    assert _scalars.folders_of(config) == [f"{tmp_path}/r/chief-0"]
    config["job"]["metrics_dir"] = str(tmp_path)  # the same folder: written once
    assert _scalars.folders_of(config) == [f"{tmp_path}/r/chief-0"]
    config["job"]["tensorboard"] = {**board, "dir": "hdfs://there/logs"}
    del config["job"]["metrics_dir"]
    assert _scalars.folders_of(config) == []


def test_a_folder_that_nodes_cannot_open_is_refused():
    for folder in ("", "hdfs://there/metrics"):
        with pytest.raises(errors.InvalidArgumentError, match="metrics_dir"):
            _scalars.checked_dir(folder)


def read_twice(ctx):
    """Two passes, one that is left, and what the driver may look at meanwhile."""
    next(ctx.reader("train", 8, remainder="partial"), None)
    for _ in range(2):
        for _ in ctx.reader("train", 8):
            time.sleep(0.001)
    ctx.barrier("read")
    time.sleep(1.5)  # the last heartbeat


@on("local")
@pytest.mark.usefixtures("leftovers")
class TestRun:
    @pytest.mark.parametrize("remainder", ["pad", "drop", "partial"])
    def test_rows_of_uneven_and_empty_nodes_are_accounted_for(self, spark, tmp_path, remainder):
        # Partition by partition to the nodes: 70 rows and none, or 70 and 30.
        for rows in (70, 100):
            df = spark.range(0, 140, 1, 2).where(f"id < {rows}")
            with Cluster(
                spark, size=2, remainder=remainder, progress=False, metrics_dir=tmp_path
            ) as cluster:
                url = cluster.serve_prometheus()
                assert cluster.prometheus() == get(url)[1] == ""
                result = cluster.run(read_twice, data=Feed(df, balance=False))
                live = samples(get(url)[1])
            found = result.rows["train"]
            assert found["fed"] == rows
            assert sorted(node["fed"] for node in found["nodes"]) == sorted([70, rows - 70])
            steps = {"pad": 9, "drop": (rows - 70) // 8}.get(remainder)
            for node in found["nodes"]:
                assert len(node["epochs"]) == (
                    2 if node["fed"] else 3
                )  # a look at nothing is whole
                for epoch in node["epochs"][-2:]:
                    assert epoch["used"] + epoch["dropped"] == epoch["fed"] == node["fed"]
                    if steps is not None:
                        assert epoch["used"] + epoch["padded"] == 8 * steps
            assert found["used"] + found["dropped"] == 2 * rows
            assert sum(v for (n, _), v in live.items() if n == "arcflow_feed_rows_total") == rows
            nodes = result.metrics["feeds"]["train"]
            for node, counted in zip(nodes, found["nodes"], strict=True):
                assert node["rows"] == counted["fed"]
                assert [e["rows"] for e in node["epochs"]] == [e["used"] for e in counted["epochs"]]
                for epoch in node["epochs"]:
                    assert epoch["bytes"] >= 8 * epoch["rows"]
                    assert (epoch["rows_per_s"] > 0) == (epoch["rows"] > 0)
                    assert 0 <= epoch["feed_bound"] <= 1
                    if epoch["steps"]:
                        assert epoch["compute_s"] > 0
            with pytest.raises(urllib.error.URLError):
                get(url)
        runs = sorted(path.name for path in tmp_path.iterdir())
        assert len(runs) == 2
        for run in runs:
            assert sorted(path.name for path in (tmp_path / run).iterdir()) == [
                "chief-0",
                "worker-0",
            ]
            for node in (tmp_path / run).iterdir():
                assert events_of(node)["arcflow/epochs"][-1][1] in (2, 3)
