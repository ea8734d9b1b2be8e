# SPDX-License-Identifier: Apache-2.0
"""How a node trains with the others: the part of `Context` that makes strategies and names devices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from ._roles import Roles
from .errors import UnimplementedError

if TYPE_CHECKING:
    from .context import Context


class Strategies:
    """What `Context` says about strategies, coordinators, devices and meshes."""

    role: str
    rank: int
    size: int
    cluster: dict[str, list[str]]
    _roles: Roles

    def strategy(self, *, variable_partitioner: Any = None) -> Any:
        """Return the `tf.distribute.Strategy` for this node, ready for Keras 3 and custom loops.

        With parameter servers it is a ``ParameterServerStrategy``, for loops with `coordinator` and
        for ``tf_keras``.

        Parameters
        ----------
        variable_partitioner
            Of ``tf.distribute.experimental.partitioners``: how variables are split over parameter
            servers. To be given to the first call, before `coordinator`; later calls may leave it out.
        """
        if variable_partitioner is None:
            from .tf import default_strategy

            return default_strategy()
        if not self._roles.ps or self.role != "chief":
            raise UnimplementedError(
                "variable_partitioner= splits variables over parameter servers, and is the chief's: "
                "Cluster(ps=2, size=2)"
            )
        from .tf.parameter_server import server_strategy

        return server_strategy(variable_partitioner)

    def device(self, node: int | str = 0, number: int = 0) -> str:
        """Name a device of another node, for ``tf.device`` and `arcflow.tf.place`; the chief's alone.

        Parameters
        ----------
        node
            Rank, or ``"role:index"`` such as ``"worker:1"`` or ``"ps:0"``.
        number
            Which of the node's accelerators. A node without any has its processor, number 0.

        Returns
        -------
        str
            Such as ``"/job:worker/replica:0/task:1/device:GPU:0"``.

        Raises
        ------
        UnimplementedError
            Nodes of this run do not serve the chief, or this is not the chief.
        NotFoundError
            There is no such node or device; the message lists those that there are.
        """
        if not self._roles.chief_alone or self.role != "chief":
            raise UnimplementedError(
                "ctx.device() places parts of the chief's program on nodes that serve it, and is the "
                "chief's: Cluster(size=2, workers_serve=True)"
            )
        from .tf import remote

        return remote.device(cast("Context", self), node, number)

    def coordinator(self) -> Any:
        """Return the ``ClusterCoordinator`` that hands functions to the workers; needs ``ps=``."""
        if not self._roles.ps or self.role != "chief":
            raise UnimplementedError(
                "a coordinator needs parameter servers, and is the chief's: Cluster(ps=1, size=2)"
            )
        from .tf import parameter_server

        return parameter_server.coordinator()

    def step_counter(self, initial: int = 0) -> Any:
        """Return a counter that loses no step when workers count at the same time.

        It lies on a parameter server, if there is one, and is added to there: ``counter.add()``
        inside a step, ``int(counter)`` outside.
        """
        from .tf.parameter_server import StepCounter

        return StepCounter(self.strategy(), initial)

    def mesh(self, dims: Mapping[str, int] | None = None) -> Any:
        """Return a DTensor mesh over all training nodes; every one of them must make it.

        Call it before anything else is asked of TensorFlow in the process, and instead of `strategy`.

        Parameters
        ----------
        dims
            Name and length of each dimension, outermost first; the product of lengths is the number
            of devices of all nodes. By default one dimension ``"batch"`` over all.

        Returns
        -------
        tf.experimental.dtensor.Mesh
            Its ranks are in order of ours.

        Raises
        ------
        UnimplementedError
            A run in which not every training node calls the function, or not in a training node.
        InvalidArgumentError
            `dims` does not fit the devices.

        Examples
        --------
        >>> ctx.mesh({"batch": 1, "model": ctx.size})  # doctest: +SKIP
        """
        if self._roles.chief_alone or self.role not in ("chief", "worker"):
            raise UnimplementedError(
                "a mesh needs nodes that all call the function: leave ps= and workers_serve= out"
            )
        from .tf import mesh

        return mesh.make(cast("Context", self), dims)
