# SPDX-License-Identifier: Apache-2.0
"""Output of nodes: files in full, last lines on request, and copies on HDFS."""

from __future__ import annotations

import contextlib
import threading

import pytest

from arcflow import _logs, errors


@pytest.fixture
def logs(tmp_path):
    found = _logs.NodeLogs(str(tmp_path))
    found.begin("run7", lambda rank, lines: None)
    found.members(
        [{"role": "chief", "index": 0, "rank": 0}, {"role": "worker", "index": 0, "rank": 1}]
    )
    return found


def test_lines_that_came_with_the_outcome_are_kept(logs):
    logs.take(1, ["a", "b", "c"])
    logs.end()
    assert logs.last("worker:0", 2) == ["b", "c"]
    assert logs.last(1, 10) == ["a", "b", "c"]
    assert logs.last("worker", 1) == ["c"]


def test_a_shorter_report_of_the_same_does_not_replace_a_longer_one(logs):
    logs.take(0, ["a", "b", "c"])
    logs.take(0, ["c"])
    logs.end()
    assert logs.last(0, 10) == ["a", "b", "c"]


def test_a_running_node_is_asked(tmp_path):
    logs = _logs.NodeLogs()
    asked = []

    def request(rank, lines):
        asked.append((rank, lines))
        threading.Timer(0.05, logs.take, (rank, ["fresh"])).start()

    logs.begin("run", request)
    logs.members([{"role": "chief", "index": 0, "rank": 0}])
    assert logs.last("chief", 20) == ["fresh"]
    assert asked == [(0, 20)]


def test_unknown_nodes_are_named(logs):
    logs.end()
    with pytest.raises(errors.NotFoundError, match=r"no node 'ps'; there is chief:0, worker:0"):
        logs.last("ps", 5)
    with pytest.raises(errors.NotFoundError, match="nothing is known of what rank 1 wrote"):
        logs.last(1, 5)
    with pytest.raises(errors.InvalidArgumentError):
        logs.last(0, 0)


def test_a_file_that_the_driver_sees_is_read(logs, tmp_path):
    path = tmp_path / "run7" / "worker-0.log"
    path.parent.mkdir()
    path.write_text("".join(f"line {i} {'x' * 100}\n" for i in range(5000)))
    found = logs.last("worker:0", 3000)
    assert len(found) == 3000
    assert found[-1].startswith("line 4999 ")
    assert found[0].startswith("line 2000 ")


def test_a_folder_that_cannot_be_written_is_refused_at_once(web_hdfs):
    with pytest.raises(errors.UnimplementedError, match="cannot write to s3://"):
        _logs.checked_dir("s3://bucket/logs")
    with pytest.raises(errors.InvalidArgumentError):
        _logs.checked_dir("")
    assert _logs.checked_dir(None) is None
    assert _logs.checked_dir(f"{web_hdfs.url}/logs/") == f"{web_hdfs.url}/logs"
    assert list(web_hdfs.root.glob("logs/*")) == []
    web_hdfs.refuse = {"CREATE"}
    with pytest.raises(errors.PermissionDeniedError, match="CREATE is refused"):
        _logs.checked_dir(f"{web_hdfs.url}/logs")


def test_hdfs_gets_the_file_when_the_node_has_ended(tmp_path, web_hdfs):
    config = {"run_id": "r", "role": "ps", "index": 3}
    local = tmp_path / "local"
    local.mkdir()
    with (
        contextlib.suppress(RuntimeError),
        _logs.written(f"{web_hdfs.url}/logs", config, [str(local)]),
    ):
        with open(config["log_file"], "w") as file:
            file.write("all of it")
        raise RuntimeError("the node failed")
    assert (web_hdfs.root / "logs/r/ps-3.log").read_text() == "all of it"
    assert list(local.iterdir()) == []


def test_hdfs_that_breaks_does_not_fail_the_run(tmp_path, web_hdfs, capsys):
    config = {"run_id": "r", "role": "chief", "index": 0}
    web_hdfs.refuse = {"CREATE"}
    with _logs.written(f"{web_hdfs.url}/logs", config, [str(tmp_path)]):
        open(config["log_file"], "w").close()
    assert "was not written" in capsys.readouterr().out


def test_all_nodes_together_send_a_bounded_report():
    assert _logs.report_bytes(1) == 256 * 1024
    assert _logs.report_bytes(1000) * 1000 <= 34 << 20
