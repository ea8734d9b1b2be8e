# SPDX-License-Identifier: Apache-2.0
"""Finds out, on Spark Classic, whether a DataFrame can be the input of a barrier stage as it is."""

from __future__ import annotations

from typing import Any

# Nodes of a logical plan that keep the partitions of their only child.
_KEEPS_PARTITIONS = {"Project", "Filter"}
_MAX_DEPTH = 200


def goes_straight_in(frame: Any, size: int) -> bool:
    """Whether the frame has exactly `size` partitions, in a form that a barrier stage accepts.

    Only plans and lineage are looked at; no job runs. In doubt the answer is no, which costs a
    shuffle.

    Parameters
    ----------
    frame : pyspark.sql.DataFrame
        Of Spark Classic.
    size
        Number of partitions wanted.
    """
    execution = frame._jdf.queryExecution()
    if _repartitioned_to(execution.optimizedPlan(), size):
        return True
    plan = execution.executedPlan()
    if _name(plan) == "AdaptiveSparkPlanExec":
        return _cached_fits(plan.executedPlan(), size)
    if _has_exchange(plan):
        return False  # to ask for its RDD would run jobs
    return _lineage_fits(execution.toRdd(), size)


def _repartitioned_to(plan: Any, size: int) -> bool:
    """Whether the last shuffle was asked for by number; adaptive execution leaves those alone."""
    for _ in range(_MAX_DEPTH):
        name = plan.nodeName()
        if name == "Repartition":
            return bool(plan.shuffle()) and plan.numPartitions() == size
        if name == "RepartitionByExpression":
            asked = plan.optNumPartitions()
            return bool(asked.isDefined()) and asked.get() == size
        if name not in _KEEPS_PARTITIONS:
            return False
        plan = plan.child()
    return False


def _cached_fits(plan: Any, size: int) -> bool:
    """Whether the plan only projects and filters a cached table that has been computed."""
    for _ in range(_MAX_DEPTH):
        name = _name(plan)
        if name in ("InMemoryTableScanExec", "TableCacheQueryStageExec"):
            break
        children = plan.children()
        if "Exchange" in name or children.size() != 1:
            return False
        plan = children.apply(0)
    else:
        return False
    if name == "TableCacheQueryStageExec":
        plan = plan.inMemoryTableScan()
    builder = plan.relation().cacheBuilder()
    if not builder.isCachedColumnBuffersLoaded():
        return False  # to ask for its RDD would run jobs
    return _lineage_fits(builder.cachedColumnBuffers(), size)


def _has_exchange(plan: Any) -> bool:
    if "Exchange" in _name(plan) or "Subquery" in _name(plan):
        return True
    if _name(plan) == "AdaptiveSparkPlanExec":
        return True
    children = plan.children()
    inside = any(_has_exchange(children.apply(i)) for i in range(children.size()))
    subqueries = plan.subqueries()
    return inside or subqueries.size() > 0


def _lineage_fits(rdd: Any, size: int) -> bool:
    """Whether every RDD of the last stage has `size` partitions, as a barrier stage requires."""
    seen: set[int] = set()
    todo = [rdd]
    while todo:
        one = todo.pop()
        if one.id() in seen:
            continue
        seen.add(one.id())
        if one.getNumPartitions() != size or len(seen) > _MAX_DEPTH:
            return False
        dependencies = one.dependencies()
        for i in range(dependencies.size()):
            dependency = dependencies.apply(i)
            if "Shuffle" not in _name(dependency):
                todo.append(dependency.rdd())
    return True


def _name(java_object: Any) -> str:
    return str(java_object.getClass().getSimpleName())
