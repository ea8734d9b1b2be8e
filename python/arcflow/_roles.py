# SPDX-License-Identifier: Apache-2.0
"""Who is what in a run: chief, workers, evaluators and parameter servers, in this order of ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from .errors import InvalidArgumentError

# Ranks follow this order, so that training nodes come first and servers on the driver last.
ORDER = ("chief", "worker", "evaluator", "ps")


@dataclasses.dataclass(frozen=True)
class Roles:
    """How many nodes of each role a run has.

    Attributes
    ----------
    size
        Training nodes: the chief and the workers.
    ps, evaluator
        Parameter servers and evaluators; they come on top of `size`.
    ps_on_driver
        Whether the parameter servers run on the driver's host instead of in Spark tasks.
    workers_serve
        Whether workers serve the chief, which places its program on them, without parameter servers.
    """

    size: int
    ps: int = 0
    evaluator: int = 0
    ps_on_driver: bool = False
    workers_serve: bool = False

    @property
    def total(self) -> int:
        """All nodes."""
        return self.size + self.ps + self.evaluator

    @property
    def tasks(self) -> int:
        """Nodes that run in tasks of the barrier job: as many slots are needed at once."""
        return self.total - (self.ps if self.ps_on_driver else 0)

    def of(self, rank: int) -> tuple[str, int]:
        """Role of a rank, and its number within the role.

        Examples
        --------
        >>> [Roles(2, ps=1, evaluator=1).of(rank) for rank in range(4)]
        [('chief', 0), ('worker', 0), ('evaluator', 0), ('ps', 0)]
        """
        if rank == 0:
            return "chief", 0
        if rank < self.size:
            return "worker", rank - 1
        if rank < self.size + self.evaluator:
            return "evaluator", rank - self.size
        return "ps", rank - self.size - self.evaluator

    @property
    def chief_alone(self) -> bool:
        """Whether, of the training nodes, only the chief calls the function; workers serve it."""
        return self.ps > 0 or self.workers_serve

    @property
    def fed(self) -> range:
        """Ranks that get rows: all training nodes; not a chief that coordinates, nor what it is placed on."""
        return range(1 if self.ps else 0, 1 if self.workers_serve else self.size)

    def runs_function(self, rank: int) -> bool:
        """Whether the user's function is called on this rank; the others serve TensorFlow."""
        role, _ = self.of(rank)
        return role in ("chief", "evaluator") or (role == "worker" and not self.chief_alone)

    def to_json(self) -> dict[str, Any]:
        """Return what tasks and nodes must know; see `from_json`."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Roles:
        """Return the roles that `to_json` described."""
        return cls(**fields)


def checked_others(ps: Any, evaluator: Any, ps_on_driver: bool) -> int:
    """Return how many slots other roles than training need; InvalidArgumentError for no numbers."""
    for name, value in (("ps", ps), ("evaluator", evaluator)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InvalidArgumentError(f"{name}={value!r} is not a number of nodes (0 or more)")
    return int(evaluator) + (0 if ps_on_driver else int(ps))


def checked(
    size: int, ps: Any, evaluator: Any, ps_on_driver: bool, workers_serve: bool = False
) -> Roles:
    """Return the roles of a cluster.

    Raises
    ------
    InvalidArgumentError
        A number that is none, or servers without what they are for.
    """
    checked_others(ps, evaluator, ps_on_driver)
    if ps and size < 2:
        raise InvalidArgumentError(
            f"size={size} with ps={ps}: parameter servers need a worker beside the chief, which only "
            "coordinates: size=2 or more"
        )
    if ps_on_driver and not ps:
        raise InvalidArgumentError("ps_on_driver=True without parameter servers: say ps=1 or more")
    if workers_serve and ps:
        raise InvalidArgumentError(
            f"workers_serve=True with ps={ps}: workers of parameter servers serve the chief anyway; "
            "leave workers_serve out"
        )
    if workers_serve and size < 2:
        raise InvalidArgumentError(
            f"workers_serve=True with size={size}: there is no worker to serve the chief; size=2 or more"
        )
    return Roles(size, ps, evaluator, bool(ps_on_driver), bool(workers_serve))
