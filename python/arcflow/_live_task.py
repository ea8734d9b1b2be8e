# SPDX-License-Identifier: Apache-2.0
"""What a barrier task does for a node that outlives it: starts the agent, sees the node run, lets go."""

from __future__ import annotations

import json
import threading
from typing import Any

from . import _executor, _liveness, _task, errors

_WAIT_S = 1.0
_FOLLOW_S = 3600.0


def leave(plan: _task.Plan, config: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    """Start an agent and its node and leave them; return the outcome ``detached``, or how it failed."""
    from . import _core

    if not config["jvm_pid"]:
        raise _task.refuse(
            "FAILED_PRECONDITION",
            "the executor's JVM is not among the ancestors of Spark's Python worker, so nodes that "
            "outlive their task would have nothing to watch: run() works here, start() does not",
        )
    link = _core.AgentLink.launch(_executor.agent_path(), json.dumps(config), plan.payload)
    watch = _liveness.watch_agent(link.pid, float(config.get("stop_timeout_s") or 0))
    detached = False
    try:
        while not link.detach(_WAIT_S):
            pass
        detached = True
    except errors.CancelledError:  # it has ended already
        ended = link.wait(_WAIT_S) or ("{}", b"")
        return json.loads(ended[0]), bytes(ended[1])
    except errors.ArcflowError as error:
        return {"status": "failed", "failure": _task._agent_lost(config, error, watch)}, b""
    finally:
        watch.end()
        if not detached:
            link.close()
    # A worker process that Spark uses again is the agent's parent still.
    threading.Thread(target=_follow, args=(link,), name="arcflow-follow", daemon=True).start()
    about = {key: config[key] for key in ("role", "index", "host", "jvm_pid")}
    return {"status": "detached", **about}, b""


def _follow(link: Any) -> None:
    """Reap the agent when it ends, and end what it leaves behind when it was killed."""
    while not link.follow(_FOLLOW_S):
        pass
