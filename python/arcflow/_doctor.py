# SPDX-License-Identifier: Apache-2.0
"""`arcflow doctor`: looks at driver, Spark and executors, and says how to mend what is wrong."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import _executor, errors


@dataclasses.dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Attributes
    ----------
    name
        What was looked at.
    status
        ``"ok"``, ``"note"`` (works, but know this) or ``"failed"``.
    detail
        What was found.
    mend
        What to do; empty when nothing.
    """

    name: str
    status: str
    detail: str
    mend: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """All checks; `str()` gives a table."""

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed."""
        return all(check.status != "failed" for check in self.checks)

    def __str__(self) -> str:
        width = max((len(check.name) for check in self.checks), default=0)
        lines = []
        for check in self.checks:
            lines.append(f"{check.status:<6}  {check.name:<{width}}  {check.detail}")
            if check.mend:
                lines.append(f"{'':<6}  {'':<{width}}  -> {check.mend}")
        return "\n".join(lines)


def doctor(spark: Any = None, size: int | None = None) -> Report:
    """Check everything that a run needs, without starting a node.

    Parameters
    ----------
    spark : pyspark.sql.SparkSession
        Session to check; None checks this machine only.
    size
        Number of nodes that you want.

    Returns
    -------
    Report
        What was found; never raises for a finding.

    Examples
    --------
    >>> print(arcflow.doctor(spark, size=2))  # doctest: +SKIP
    """
    checks = list(machine_checks())
    if spark is not None:
        checks += session_checks(spark, size)
    return Report(tuple(checks))


def machine_checks() -> Iterator[Check]:
    """Look at this machine: interpreter, native parts, packages."""
    versions = _executor.versions()
    yield Check("python", "ok", versions["python"])
    yield _native(versions)
    yield _memfd()
    yield _package("pyspark", "pip install 'arcflow[spark]'")
    yield _java()
    yield _tensorflow(versions)
    yield _local_disk()


def session_checks(spark: Any, size: int | None) -> Iterator[Check]:
    """Look at a Spark application: slots, then versions on its executors."""
    from . import preflight

    yield Check("spark", "ok", f"{spark.version}, {_kind(spark)}")
    wanted = _guarded("size", lambda: preflight.checked_size(spark, size))
    if isinstance(wanted, Check):
        yield wanted
        return
    found = _guarded("slots", lambda: preflight.check_slots(spark, wanted, wait_s=10.0))
    if isinstance(found, Check):
        yield found
        return
    there = preflight.slots(spark)
    told = (
        f"{there} tasks at once"
        if there is not None
        else "not known before the run on this cluster"
    )
    yield Check("slots", "ok", f"{told}, size={wanted}")
    yield from _executor_checks(spark, wanted)


def _guarded(name: str, call: Callable[[], Any]) -> Any:
    """Return the result of a check, or a failed `Check`."""
    try:
        return call()
    except errors.ArcflowError as error:
        what, _, mend = error.message.partition(": ")
        return Check(name, "failed", what, mend)


def _kind(spark: Any) -> str:
    from . import _job

    if _job.is_connect(spark):
        return "Connect"
    return f"Classic, {spark.sparkContext.master}"


def _native(versions: dict[str, str]) -> Check:
    try:
        from . import _core  # noqa: F401
    except ImportError as error:
        return Check(
            "arcflow",
            "failed",
            f"native part: {error}",
            "install the wheel again, or run `make develop`",
        )
    agent = _executor.agent_path()
    if not os.access(agent, os.X_OK):
        return Check(
            "arcflow", "failed", f"{agent} is not there or not executable", "install again"
        )
    return Check("arcflow", "ok", versions["arcflow"])


def _memfd() -> Check:
    try:
        os.close(os.memfd_create("arcflow-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING))
    except (AttributeError, OSError) as error:
        return Check("memfd", "failed", str(error), "Linux 3.17 or later is needed")
    return Check("memfd", "ok", "shared memory by descriptor works")


def _package(name: str, mend: str) -> Check:
    import importlib.metadata

    try:
        return Check(name, "ok", importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Check(name, "failed", "not installed", mend)


def _java() -> Check:
    home = os.environ.get("JAVA_HOME", "")
    java = os.path.join(home, "bin", "java") if home else shutil.which("java")
    if java and os.access(java, os.X_OK):
        return Check("java", "ok", java)
    return Check(
        "java",
        "note",
        "no Java found; Spark Classic needs one, Spark Connect does not",
        "install Java 17 or 21, or set JAVA_HOME",
    )


def _tensorflow(versions: dict[str, str]) -> Check:
    found = versions.get("tensorflow")
    if not found:
        return Check(
            "tensorflow",
            "note",
            "not installed here; only executors need it",
            "pip install 'arcflow[tensorflow]' if nodes use this environment",
        )
    minor = ".".join(found.split(".")[:2])
    folder = Path(__file__).resolve().parent / "tfops"
    made_for = sorted(path.stem.rsplit("_tf", 1)[-1] for path in folder.glob("*_tf*.so"))
    if minor not in made_for:
        return Check(
            "tensorflow",
            "failed",
            f"{found}, but Arcflow's operations are made for {', '.join(made_for) or 'none'}",
            f"pip install 'tensorflow=={made_for[0]}.*'" if made_for else "install the wheel again",
        )
    return Check("tensorflow", "ok", f"{found}, keras {versions.get('keras', 'missing')}")


def _local_disk() -> Check:
    where = _executor.local_dirs()[0]
    free = shutil.disk_usage(where).free
    text = f"{free / (1 << 30):.1f} GiB free in {where}"
    if free < 1 << 30:
        return Check(
            "local disk", "note", text, "set spark.local.dir to a larger disk for spilled feeds"
        )
    return Check("local disk", "ok", text)


def _executor_checks(spark: Any, size: int) -> Iterator[Check]:
    """Run one barrier task a node and compare what they have."""
    from . import _spark_errors, _task

    try:
        rows = spark.range(0, size, 1, size).mapInArrow(
            _look(), "rank bigint, found string", barrier=True
        )
        found = {row.rank: json.loads(row.found) for row in rows.collect()}
    except Exception as error:  # whatever Spark raises is the finding
        refused = _task.recognise(str(error)) or _spark_errors.wrap(error)
        what, _, mend = refused.message.partition(": ")
        yield Check("executors", "failed", what, mend)
        return
    hosts = sorted({one["host"] for one in found.values()})
    yield Check("executors", "ok", f"{size} tasks at once on {', '.join(hosts)}")
    driver = _executor.versions()
    for key in ("python", "arcflow", "tensorflow", "keras"):
        yield _compare(
            key, driver.get(key), {r: one["versions"].get(key) for r, one in found.items()}
        )
    broken = sorted(rank for rank, one in found.items() if not one["agent"])
    if broken:
        yield Check(
            "agents", "failed", f"no agent executable at ranks {broken}", "install the wheel there"
        )


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


def _look() -> Callable[[Any], Any]:
    """Return the function that looks at an executor; pickled by value."""

    def look(batches: Any) -> Any:
        import json
        import os

        import pyarrow as pa
        from pyspark import BarrierTaskContext

        try:
            from arcflow import _executor
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
        rank = context.partitionId()
        found = {
            "host": context.getTaskInfos()[rank].address.rsplit(":", 1)[0],
            "versions": _executor.versions(),
            "agent": os.access(_executor.agent_path(), os.X_OK),
        }
        yield pa.RecordBatch.from_pydict(
            {"rank": pa.array([rank], pa.int64()), "found": [json.dumps(found)]}
        )

    return look
