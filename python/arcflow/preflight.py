# SPDX-License-Identifier: Apache-2.0
"""Checks that are made before any node starts; each refusal says what to change."""

from __future__ import annotations

import operator
import re
import time
from typing import Any

from . import _job
from ._doctor import Check, Report, doctor
from ._roles import Roles
from .errors import FailedPreconditionError, InvalidArgumentError, UnimplementedError

__all__ = ["Check", "Report", "check_slots", "checked_size", "doctor", "session", "slots"]

# How long executors may take to register with a fresh application.
_EXECUTORS_WAIT_S = 30.0


def session(spark: Any = None) -> Any:
    """Return the session to use.

    Parameters
    ----------
    spark
        A session, or None for the active one.
    """
    try:
        from pyspark.sql import SparkSession
    except ImportError as error:
        raise FailedPreconditionError(
            f"PySpark cannot be imported ({error}): pip install 'arcflow[spark]'"
        ) from error
    if spark is None:
        spark = SparkSession.getActiveSession()
        if spark is None:
            raise FailedPreconditionError(
                "there is no active SparkSession: make one, or hand it over as Cluster(spark)"
            )
    if not hasattr(spark, "range") or not hasattr(spark, "conf"):
        raise InvalidArgumentError(f"Cluster() needs a SparkSession, not {type(spark).__name__}")
    return spark


def checked_size(spark: Any, size: Any, others: int = 0) -> int:
    """Return the number of training nodes.

    Parameters
    ----------
    spark
        The session.
    size
        What the user said, or None: one for each executor that `others` leave.
    others
        Nodes of other roles.

    Raises
    ------
    InvalidArgumentError
        Not a number, or below 1, or None where Spark does not tell the number of executors.
    """
    if size is None:
        if _job.is_connect(spark):
            raise InvalidArgumentError(
                "size= is needed on Spark Connect, where the number of executors is not known"
            )
        return max(1, executors(spark) - others)
    try:
        if isinstance(size, bool):
            raise TypeError
        number = operator.index(size)
    except TypeError:
        raise InvalidArgumentError(f"size={size!r} is not a whole number of nodes") from None
    if number < 1:
        raise InvalidArgumentError(f"size={number}: a run needs at least one node, so size >= 1")
    return number


def checked_gpus(gpus: Any) -> int | None:
    """Return the number of accelerators a node, or None; InvalidArgumentError when it is no number."""
    if gpus is None:
        return None
    if isinstance(gpus, bool) or not isinstance(gpus, int) or gpus < 0:
        raise InvalidArgumentError(
            f"gpus={gpus!r} is not a number of accelerators a node (0 or more)"
        )
    return gpus


def checked_profile(spark: Any, profile: Any) -> Any:
    """Return a resource profile that this cluster can use.

    Raises
    ------
    UnimplementedError
        Spark has no profiles in local mode.
    """
    if profile is None:
        return None
    if type(profile).__name__ != "ResourceProfile":
        raise InvalidArgumentError(
            f"profile= needs a pyspark.resource.ResourceProfile, not {type(profile).__name__}"
        )
    master = (
        _connect_conf(spark, "spark.master")
        if _job.is_connect(spark)
        else spark.sparkContext.master
    )
    if re.match(r"local(\[|$|-cluster)", master or ""):
        raise UnimplementedError(
            f"Spark has no resource profiles on {master}: leave profile= out there; standalone, YARN "
            "and Kubernetes have them"
        )
    return profile


def check_slots(spark: Any, nodes: Roles | int, wait_s: float = _EXECUTORS_WAIT_S) -> None:
    """Refuse a run that can never have all its tasks at once, as a barrier stage needs.

    Parameters
    ----------
    spark
        The session.
    nodes
        Roles of the run, or a number of nodes.
    wait_s
        How long executors of a fresh application may take to register.
    """
    if _setting(spark, "spark.dynamicAllocation.enabled") == "true":
        raise FailedPreconditionError(
            "Spark does not run barrier stages under dynamic allocation: set "
            "spark.dynamicAllocation.enabled=false and a fixed number of executors "
            "(spark.executor.instances, or spark.cores.max)"
        )
    roles = nodes if isinstance(nodes, Roles) else Roles(nodes)
    size = roles.tasks
    deadline = time.monotonic() + wait_s
    found = slots(spark)
    while found is not None and found < size and _may_grow(spark) and time.monotonic() < deadline:
        time.sleep(0.2)
        found = slots(spark)
    if found is not None and found < size:
        raise InvalidArgumentError(
            f"{_wanted(roles)}, but the cluster runs {found} tasks at once"
            f"{_explain(spark)}: {_advice(roles, found)}, or add executors or cores"
        )


def _wanted(roles: Roles) -> str:
    if roles.tasks == roles.size:
        return f"size={roles.size}"
    there = f", ps={roles.ps}" if roles.ps and not roles.ps_on_driver else ""
    there += f", evaluator={roles.evaluator}" if roles.evaluator else ""
    return f"size={roles.size}{there} need {roles.tasks} slots"


def _advice(roles: Roles, found: int) -> str:
    others = roles.tasks - roles.size
    least = 2 if roles.chief_alone else 1
    if found - others >= least:
        return f"lower size= to {found - others}"
    return "ask for fewer nodes"


def slots(spark: Any) -> int | None:
    """Return the number of tasks that the application can run at once; None when Spark does not tell."""
    if not _job.is_connect(spark):
        context = spark.sparkContext._jsc.sc()
        profile = context.resourceProfileManager().defaultResourceProfile()
        return int(context.maxNumConcurrentTasks(profile))
    master = _connect_conf(spark, "spark.master") or ""
    cpus = int(_connect_conf(spark, "spark.task.cpus") or 1)
    if master == "local":
        return 1 // cpus
    if found := re.fullmatch(r"local\[(\d+)(?:,\s*\d+)?\]", master):
        return int(found[1]) // cpus
    if found := re.fullmatch(r"local-cluster\[\s*(\d+)\s*,\s*(\d+)\s*,.*\]", master):
        return int(found[1]) * (int(found[2]) // cpus)
    return None


def executors(spark: Any) -> int:
    """Return the number of executors of a Classic application; 1 in local mode."""
    context = spark.sparkContext
    if context.master.startswith("local["):
        return 1
    return (
        len(context._jsc.sc().statusTracker().getExecutorInfos()) - 1
    )  # the driver is one of them


def _may_grow(spark: Any) -> bool:
    """Whether executors may still be registering."""
    if _job.is_connect(spark):
        return False
    return not re.match(r"local(\[|$)", spark.sparkContext.master)


def _explain(spark: Any) -> str:
    if _job.is_connect(spark):
        return f" ({_connect_conf(spark, 'spark.master')})"
    cpus = spark.sparkContext.getConf().get("spark.task.cpus", "1")
    return (
        f" ({spark.sparkContext.master}, {executors(spark)} executors, "
        f"{cpus} core{'s' if cpus != '1' else ''} a task)"
    )


def _setting(spark: Any, key: str) -> str | None:
    """Return a setting of the application; None where it is not set, or not shown."""
    if _job.is_connect(spark):
        return _connect_conf(spark, key)
    return spark.sparkContext.getConf().get(key)


def _connect_conf(spark: Any, key: str) -> str | None:
    try:
        value = spark.conf.get(key, None)
    except Exception:  # not every server shows every setting
        return None
    return None if value in (None, "") else str(value)
