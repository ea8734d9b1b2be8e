# SPDX-License-Identifier: Apache-2.0
"""The rows of `arcflow doctor` about a cluster's executors: one barrier task a node, then a verdict."""

from __future__ import annotations

import collections
import dataclasses
import json
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from . import _executor, _job, _spark_errors, _task
from ._doctor import Check
from ._doctor_look import Wants

_HDFS_PORT = 8020
_MAX_SKEW_S = 5.0
_NOTED_SKEW_S = 1.0
_FEW_DESCRIPTORS = 4096
_LITTLE_DISK = 1 << 30
_FEED_SHARE = 0.6  # of the memory; the rest is for Spark's JVM and TensorFlow
Findings = Mapping[int, Mapping[str, Any]]


def executor_checks(spark: Any, size: int, wants: Wants) -> Iterator[Check]:
    """Run one barrier task a node, and judge what they found."""
    try:
        rows = spark.range(0, size, 1, size).mapInArrow(
            _looker(wants), "rank bigint, found string", barrier=True
        )
        found = {row.rank: json.loads(row.found) for row in rows.collect()}
    except Exception as error:  # whatever Spark raises is the finding
        refused = _task.recognise(str(error)) or _spark_errors.wrap(error)
        what, _, mend = refused.message.partition(": ")
        yield Check("executors", "failed", what, mend)
        return
    hosts = sorted({one["host"] for one in found.values()})
    yield Check("executors", "ok", f"{size} tasks at once on {', '.join(hosts)}")
    yield from version_checks(found)
    yield from judge(found, wants)


def version_checks(found: Findings) -> Iterator[Check]:
    """Compare versions of the executors with each other and with the driver."""
    driver = _executor.versions()
    for key in ("python", "arcflow", "tensorflow", "keras"):
        there = {rank: one["versions"].get(key) for rank, one in found.items()}
        yield _compare(key, driver.get(key), there)
    broken = sorted(rank for rank, one in found.items() if not one["agent"])
    if broken:
        yield Check(
            "agents", "failed", f"no agent executable at ranks {broken}", "install the wheel there"
        )


def judge(found: Findings, wants: Wants) -> Iterator[Check]:
    """Judge everything about hosts and network."""
    yield _memory(found, wants)
    yield _memfd(found)
    yield _disk(found)
    yield _gpus(found, wants)
    yield from _network(found)
    yield _clocks(found)
    if wants.hdfs:
        yield _hdfs(found, wants)


def _memory(found: Findings, wants: Wants) -> Check:
    """Compare the rows' memory of all nodes of a host with what the container, or the host, has."""
    nodes = collections.Counter(one["executor"] for one in found.values())
    worst = max(found.values(), key=lambda one: nodes[one["executor"]] / one["memory_bytes"])
    count, limit = nodes[worst["executor"]], worst["memory_bytes"]
    feed = count * wants.feed_memory_bytes
    text = (
        f"{worst['memory_of']} limit {_size(limit)} at {worst['host']}, feed_memory "
        f"{_size(wants.feed_memory_bytes)} x {count} node{'s' if count > 1 else ''}"
    )
    if feed > limit * _FEED_SHARE:
        return Check(
            "memory",
            "failed",
            text,
            f"lower feed_memory= to {_size(int(limit * _FEED_SHARE / count))}, or raise the limit "
            "(spark.executor.memoryOverhead counts for nodes and their rows)",
        )
    return Check("memory", "ok", text)


def _memfd(found: Findings) -> Check:
    for rank, one in sorted(found.items()):
        if error := one["memfd"].get("error"):
            return Check(
                "shared memory",
                "failed",
                f"no memfd at rank {rank}, {one['host']}: {error}",
                "Linux 3.17 or later is needed, and a seccomp profile that allows memfd_create",
            )
    few = min(one["descriptors"] for one in found.values())
    if 0 <= few < _FEW_DESCRIPTORS:
        return Check(
            "shared memory",
            "note",
            f"memfd works; only {few} descriptors a process",
            f"raise the hard limit of open files (ulimit -Hn) to {_FEW_DESCRIPTORS}: each piece of "
            "rows takes one",
        )
    return Check("shared memory", "ok", "memfd works; /dev/shm is not used")


def _disk(found: Findings) -> Check:
    least = min(found.values(), key=lambda one: one["disk_bytes"])
    text = f"{_size(least['disk_bytes'])} free in {least['disk']} at {least['host']}"
    if least["disk_bytes"] < _LITTLE_DISK:
        return Check(
            "spill disk", "note", text, "set spark.local.dir to a larger disk for spilled feeds"
        )
    return Check("spill disk", "ok", text)


def _gpus(found: Findings, wants: Wants) -> Check:
    for rank, one in sorted(found.items()):
        if error := one["gpus"].get("error"):
            what, _, mend = error.partition(": ")
            return Check("gpus", "failed", f"rank {rank}, {one['host']}: {what}", mend)
    listed = {", ".join(one["gpus"]["value"]) or "none" for one in found.values()}
    asked = "" if wants.gpus is None else f", gpus={wants.gpus}"
    return Check("gpus", "ok", f"{' / '.join(sorted(listed))} a node{asked}")


def _network(found: Findings) -> Iterator[Check]:
    for rank, one in sorted(found.items()):
        if one["address"] is None:
            what, _, mend = one["network"].partition(": ")
            mend = mend or "choose another network= or ports="
            yield Check("address", "failed", f"rank {rank}, {one['host']}: {what}", mend)
            return
    yield Check("address", "ok", ", ".join(one["address"] for _, one in sorted(found.items())))
    lost = [
        f"rank {rank} ({one['host']}) cannot reach rank {other} at {why}"
        for rank, one in sorted(found.items())
        for other, why in sorted(one["unreached"].items())
    ]
    if lost:
        more = f"; and {len(lost) - 3} more pairs" if len(lost) > 3 else ""
        yield Check(
            "reachability",
            "failed",
            "; ".join(lost[:3]) + more,
            "open the ports between the executors' hosts (ports='40000-40100' says which), or choose "
            "the interface that connects them (network='10.0.0.0/8')",
        )
    else:
        pairs = len(found) * (len(found) - 1)
        yield Check("reachability", "ok", f"all {pairs} pairs of nodes connect")


def _clocks(found: Findings) -> Check:
    skews = {rank: float(one["skew_s"]) for rank, one in found.items() if one["skew_s"] is not None}
    if not skews:
        return Check("clocks", "ok", "nothing to compare")
    rank = max(skews, key=lambda one: abs(skews[one]))
    text = f"at most {abs(skews[rank]):.3f} s apart (rank {rank}, {found[rank]['host']})"
    mend = "run a time service (chrony) on all hosts: times in logs and of failures would mislead"
    if abs(skews[rank]) > _MAX_SKEW_S:
        return Check("clocks", "failed", text, mend)
    if abs(skews[rank]) > _NOTED_SKEW_S:
        return Check("clocks", "note", text, mend)
    return Check("clocks", "ok", text)


def _hdfs(found: Findings, wants: Wants) -> Check:
    for rank, one in sorted(found.items()):
        answers = one["hdfs"]
        if answers and all(answers.values()):
            where, why = next(iter(answers.items()))
            return Check(
                "hdfs",
                "failed",
                f"rank {rank} ({one['host']}) cannot reach the name node {where} ({why})",
                "check fs.defaultFS (core-site.xml, or spark.hadoop.fs.defaultFS) and the firewall",
            )
    return Check("hdfs", "ok", f"name node {', '.join(wants.hdfs)} answers every node")


def name_nodes(spark: Any) -> tuple[str, ...]:
    """Return the name nodes of the default file system as ``host:port``; empty if it is no HDFS."""
    get = _hadoop_setting(spark)
    url = urllib.parse.urlsplit(get("fs.defaultFS") or "")
    if url.scheme != "hdfs" or not url.hostname:
        return ()
    service = url.netloc
    nodes = [name.strip() for name in (get(f"dfs.ha.namenodes.{service}") or "").split(",")]
    addresses = [get(f"dfs.namenode.rpc-address.{service}.{name}") for name in nodes if name]
    return tuple(one for one in addresses if one) or (f"{url.hostname}:{url.port or _HDFS_PORT}",)


def _hadoop_setting(spark: Any) -> Callable[[str], str | None]:
    if not _job.is_connect(spark):
        hadoop = spark.sparkContext._jsc.hadoopConfiguration()
        return lambda key: hadoop.get(key)

    def get(key: str) -> str | None:
        try:
            return spark.conf.get(f"spark.hadoop.{key}", None)
        except Exception:  # not every server shows every setting
            return None

    return get


def _size(size_bytes: int) -> str:
    for unit, shift in (("TiB", 40), ("GiB", 30), ("MiB", 20)):
        if size_bytes >= 1 << shift:
            return f"{size_bytes / (1 << shift):.1f} {unit}"
    return f"{size_bytes} bytes"


def _compare(key: str, driver: str | None, there: dict[int, str | None]) -> Check:
    name = f"{key} there"
    seen = {str(version or "missing") for version in there.values()}
    if seen == {"missing"}:
        return Check(name, "failed", "missing on all executors", f"install {key} on the executors")
    text = ", ".join(sorted(seen))
    if len(seen) > 1:
        return Check(name, "failed", f"executors differ: {text}", "give all the same environment")
    if driver and _comparable(key, driver) != _comparable(key, next(iter(seen))):
        return Check(
            name, "failed", f"{text}, but {driver} in the driver", "use the same version on both"
        )
    return Check(name, "ok", text)


def _comparable(key: str, version: str) -> str:
    return ".".join(version.split(".")[:2]) if key == "python" else version


def _looker(wants: Wants) -> Callable[[Any], Any]:
    """Return the function that looks at an executor; pickled by value."""
    fields = dataclasses.asdict(wants)

    def look(batches: Any) -> Any:
        import json

        import pyarrow as pa
        from pyspark import BarrierTaskContext

        try:
            from arcflow import _doctor_look
        except ImportError as error:
            import base64
            import sys

            text = (
                f"arcflow cannot be imported on an executor ({error}; {sys.executable}): install it "
                "there, or point spark.pyspark.python to an environment that has it"
            )
            mark = base64.b64encode(text.encode()).decode()
            raise RuntimeError(f"{text} [[arcflow FAILED_PRECONDITION {mark}]]") from None
        context = BarrierTaskContext.get()
        for _ in batches:
            pass
        found = _doctor_look.look(_doctor_look.Wants(**fields), context)
        yield pa.RecordBatch.from_pydict(
            {"rank": pa.array([context.partitionId()], pa.int64()), "found": [json.dumps(found)]}
        )

    return look
