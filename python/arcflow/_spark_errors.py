# SPDX-License-Identifier: Apache-2.0
"""Turns what Spark raises about the job of a run into one error of Arcflow that says what to do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from . import errors

_MAX_CHARS = 2000
# Deaths of processes about which Spark may know more than the coordinator.
_SPARK_MAY_KNOW = ("feeder", "agent lost", "executor lost")

# What is in Spark's message -> (code, text). The first that fits counts.
_KNOWN = (
    (
        "SPARK-24819",
        "FAILED_PRECONDITION",
        "the run wants more nodes than the cluster has slots at once: lower size=, or add executors",
    ),
    (
        "SPARK-24942",
        "FAILED_PRECONDITION",
        "Spark does not run barrier stages under dynamic allocation: set "
        "spark.dynamicAllocation.enabled=false and a fixed number of executors",
    ),
    (
        "SPARK-24820",
        "INTERNAL",
        "Spark refuses the plan of the DataFrame inside a barrier stage: "
        "call df.repartition(size) before you hand it over, and report this",
    ),
    (
        "PYTHON_VERSION_MISMATCH",
        "FAILED_PRECONDITION",
        "driver and executors run different Python versions: set spark.pyspark.python, or "
        "PYSPARK_PYTHON, to the same version",
    ),
    ("SPARK_JOB_CANCELLED", "CANCELLED", "the Spark job of the run was cancelled"),
    ("OPERATION_CANCELED", "CANCELLED", "the Spark job of the run was cancelled"),
)


def wrap(error: BaseException | None) -> errors.ArcflowError:
    """Return Arcflow's error for a Spark job that failed before or beside the nodes."""
    if isinstance(error, errors.ArcflowError):
        return error
    if error is None:
        return errors.AbortedError("the Spark job of the run did not end; it was cancelled")
    text = str(error)
    for mark, code, message in _KNOWN:
        if mark in text:
            return errors.from_code(code, f"{message} (Spark: {summary(error, 300)})")
    return errors.AbortedError(f"the Spark job of the run failed: {summary(error)}")


def node_failed(
    failure: Mapping[str, Any],
    error: BaseException | None,
    others: Sequence[Mapping[str, Any]] = (),
) -> errors.ArcflowError:
    """Return the error for a node's failure; `error` is what Spark said, when it said something."""
    failure = dict(failure)
    if failure.get("cause") == "rejected":
        return errors.FailedPreconditionError(str(failure.get("message")))
    if (
        error is not None
        and failure.get("cause") in _SPARK_MAY_KNOW
        and not failure.get("traceback")
    ):
        message = str(failure.get("message") or "")
        failure["message"] = f"{message}; Spark says: {summary(error, 400)}".lstrip("; ")
    return errors.NodeFailedError(failure, others)


def summary(error: BaseException, max_chars: int = _MAX_CHARS) -> str:
    """Return what a person needs of Spark's message: no Java frames, not too long."""
    text = _message(error)
    python = re.search(
        r"Traceback \(most recent call last\):.*?(?=\n\n|\n\s+at |\Z)", text, re.DOTALL
    )
    lines = [line for line in text.splitlines() if line.strip() and not _is_java_frame(line)]
    if max_chars < _MAX_CHARS:  # one line
        joined = " ".join(line.strip() for line in lines) or type(error).__name__
    else:
        head = lines[0] if lines else type(error).__name__
        joined = f"{head}\n{python[0] if python else chr(10).join(lines[1:])}".strip()
    return joined if len(joined) <= max_chars else joined[: max_chars - 1] + "…"


def _message(error: BaseException) -> str:
    java = getattr(error, "java_exception", None)
    if java is not None:
        try:
            return str(java.getMessage())
        except Exception:  # the JVM may be gone
            return str(error)
    return str(error)


def _is_java_frame(line: str) -> bool:
    return bool(re.match(r"\s*(at |\.\.\. \d+ more|Driver stacktrace)", line))
