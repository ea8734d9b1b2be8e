# SPDX-License-Identifier: Apache-2.0
"""Whether every node reaches every other, found out before TensorFlow waits for it in vain."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import selectors
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from . import errors

_TIMEOUT_S = 10.0
_BACKLOG = 4096
Exchange = Callable[[str, bytes], Sequence[bytes]]


class PeerUnreachableError(errors.UnavailableError):
    """Some node cannot reach another; `peer_loss` tells whether it was this one."""

    peer_loss: bool = False


def check(
    own: str,
    targets: Mapping[str, str],
    exchange: Exchange,
    timeout_s: float = _TIMEOUT_S,
) -> None:
    """Connect to every other node's port, while all listen, and compare notes.

    Parameters
    ----------
    own
        This node's name; one that is not among the targets needs to reach nobody.
    targets
        Name to ``host:port`` of every node that serves others. The port is held by the node's
        agent, which does not listen; sharing it is allowed.
    exchange
        Hands every node's word to every node, a barrier: ``exchange(name, word)``.
    timeout_s
        For all connections together.

    Raises
    ------
    UnavailableError
        Names each pair that failed; on all nodes.
    """
    with listening(targets.get(own)):
        exchange("arcflow/reach/listening", b"")
        others = {name: where for name, where in targets.items() if name != own}
        failed = connect_all(others, timeout_s) if own in targets else {}
        word = json.dumps({"node": own, "failed": failed}).encode()
        words = [json.loads(text) for text in exchange("arcflow/reach/done", word)]
    pairs = [(one["node"], name, why) for one in words for name, why in one["failed"].items()]
    if not pairs:
        return
    error = PeerUnreachableError(describe(pairs, targets))
    error.peer_loss = not failed
    raise error


def describe(pairs: Sequence[tuple[str, str, str]], targets: Mapping[str, str]) -> str:
    """Say which nodes cannot reach which, and what to do."""
    listed = "; ".join(
        f"{source} cannot reach {target} at {targets[target]} ({why})"
        for source, target, why in pairs[:5]
    )
    more = f"; and {len(pairs) - 5} more pairs" if len(pairs) > 5 else ""
    return (
        f"{listed}{more}. Open the ports between the executors' hosts (Cluster(ports='40000-40100') "
        "says which), or choose the interface that connects them (network='10.0.0.0/8')"
    )


@contextlib.contextmanager
def listening(where: str | None) -> Iterator[None]:
    """Accept connections at ``host:port``, which may be shared, as long as the context lasts."""
    if where is None:
        yield
        return
    host, port = where.rsplit(":", 1)
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind((host, int(port)))
        server.listen(_BACKLOG)  # the kernel completes connections; nobody need accept them
        yield


def connect_all(targets: Mapping[str, str], timeout_s: float) -> dict[str, str]:
    """Connect to all at once; return name to reason of those that did not answer."""
    failed: dict[str, str] = {}
    deadline = time.monotonic() + timeout_s
    with selectors.DefaultSelector() as selector:
        for name, where in targets.items():
            host, port = where.rsplit(":", 1)
            probe = socket.socket()
            probe.setblocking(False)
            code = probe.connect_ex((host, int(port)))
            selector.register(probe, selectors.EVENT_WRITE, name)
            if code not in (0, errno.EINPROGRESS, errno.EAGAIN):
                failed[name] = os.strerror(code)
                _forget(selector, probe)
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(max(0.0, deadline - time.monotonic())):
                ready: Any = key.fileobj
                if code := ready.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    failed[key.data] = os.strerror(code)
                _forget(selector, ready)
        for key in list((selector.get_map() or {}).values()):
            failed[key.data] = f"no answer within {timeout_s:g} s"
            _forget(selector, key.fileobj)
    return failed


def _forget(selector: selectors.BaseSelector, probe: Any) -> None:
    selector.unregister(probe)
    probe.close()
