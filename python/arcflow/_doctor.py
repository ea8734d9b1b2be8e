# SPDX-License-Identifier: Apache-2.0
"""`arcflow doctor`: looks at driver, Spark and executors, and says how to mend what is wrong."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
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


def doctor(
    spark: Any = None,
    size: int | None = None,
    *,
    gpus: int | None = None,
    feed_memory: int | str = "1g",
    network: str | None = None,
    ports: int | str | None = None,
) -> Report:
    """Check everything that a run needs, without starting a node.

    Parameters
    ----------
    spark : pyspark.sql.SparkSession
        Session to check; None checks this machine only.
    size
        Number of nodes that you want.
    gpus, feed_memory, network, ports
        As you would say to `arcflow.Cluster`.

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
        wishes = {"gpus": gpus, "feed_memory": feed_memory, "network": network, "ports": ports}
        checks += session_checks(spark, size, wishes)
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


def session_checks(
    spark: Any, size: int | None, wishes: Mapping[str, Any] | None = None
) -> Iterator[Check]:
    """Look at a Spark application: slots, then its executors, for a run with these wishes."""
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
    wants = _guarded("wishes", lambda: _wants(spark, wishes or {}))
    if isinstance(wants, Check):
        yield wants
        return
    from ._doctor_cluster import executor_checks

    yield from executor_checks(spark, wanted, wants)


def _wants(spark: Any, wishes: Mapping[str, Any]) -> Any:
    """Return what executors are looked at for."""
    from . import _doctor_cluster, _job, _network, preflight
    from ._doctor_look import Wants
    from .cluster import parse_bytes

    if _job.is_connect(spark):
        driver = spark.client.host
    else:
        driver = spark.sparkContext.getConf().get("spark.driver.host")
    return Wants(
        driver=driver,
        feed_memory_bytes=parse_bytes(wishes.get("feed_memory") or "1g"),
        gpus=preflight.checked_gpus(wishes.get("gpus")),
        network=_network.checked(wishes.get("network")),
        ports=_network.port_range(wishes.get("ports")),
        hdfs=_doctor_cluster.name_nodes(spark),
    )


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
