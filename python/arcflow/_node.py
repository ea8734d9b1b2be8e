# SPDX-License-Identifier: Apache-2.0
"""`python -m arcflow._node`: the process in which the user's function runs, started by the agent."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import traceback
from collections.abc import Mapping
from typing import Any, NoReturn

from . import (
    _reach,
    _replicas,
    _scalars,
    _serve,
    _tensorboard,
    _transport,
    errors,
)
from ._roles import Roles
from .context import Context
from .tf.filesystem import register_when_imported

_MAX_TRACEBACK = 12_000
# TensorFlow's errors that survivors raise when another node died.
_PEER_LOSS_TYPES = {"UnavailableError", "AbortedError", "CancelledError", "DeadlineExceededError"}
_PEER_LOSS_TEXTS = (
    "Collective ops is aborted",
    "Connection reset by peer",
    "Connection refused",
    "Socket closed",
    "failed to connect to all addresses",
    "coordination service",
    "Coordination service",
    "heartbeat timeout",
)


class _FunctionError(Exception):
    """The function could not be called, or its value not be sent; the message is for users."""


def main() -> NoReturn:
    """Run the node. Never returns: TensorFlow's clean exit takes seconds and can hang."""
    from . import _core

    broker_fd = int(os.environ["ARCFLOW_NODE_FD"])
    link = _core.NodeLink(broker_fd)
    status = 1
    try:
        text, payload = link.config()
        config = json.loads(text)
        answer_with_stacks(link)
        set_tf_config(config)
        register_when_imported()
        _replicas.accumulate_when_imported(config.get("job") or {})
        _transport.remember(config)
        with _scalars.written(link, config):
            value = _work(link, broker_fd, config, payload)
        link.result(value)
        status = 0
    except BaseException as error:  # SystemExit and KeyboardInterrupt are failures of the node too
        _report(link, error)
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                pass
        os._exit(status)


def answer_with_stacks(link: Any) -> None:
    """Let the agent ask for the Python stacks of all threads, even when one of them holds the GIL."""
    if link.stacks_fd < 0:
        return
    faulthandler.register(link.stacks_signal, file=link.stacks_fd, all_threads=True, chain=False)
    link.python_stacks()


def set_tf_config(config: Mapping[str, Any]) -> None:
    """Set ``TF_CONFIG`` as TensorFlow expects it; a chief alone has none.

    Evaluators are in nobody's list of servers: they train with nobody. Nor has a chief one that
    workers serve without a strategy: TensorFlow would take them for its equals, and wait for them.
    """
    os.environ.pop("TF_CONFIG", None)
    cluster = {role: who for role, who in config["cluster"].items() if role != "evaluator"}
    if sum(map(len, cluster.values())) > 1 or config["role"] == "evaluator":
        # The agent holds our port until we end; without this TensorFlow would not share it.
        os.environ["TF_GRPC_REUSE_PORT"] = "true"
        served = ((config.get("job") or {}).get("roles") or {}).get("workers_serve")
        if served and config["role"] == "chief":
            return
        task = {"type": config["role"], "index": int(config["index"])}
        os.environ["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})


def _work(link: Any, broker_fd: int, config: Mapping[str, Any], payload: bytes) -> bytes:
    """Do what this node is for, until its end; return its pickled value."""
    import cloudpickle

    nothing = bytes(cloudpickle.dumps((None, {})))
    rank, size = int(config["rank"]), int(config["size"])
    if size > 1 and not config.get("respawned"):  # then the others have long gone on
        _check_reach(link, config)
    job = config.get("job") or {}
    roles = Roles.from_json(job.get("roles") or {"size": size})
    if not roles.runs_function(rank):
        _serve.serve(link, config)
        return nothing
    if config["role"] == "evaluator":
        end = _serve.TrainingEnd(link, nothing, float(job["evaluator_grace_s"]))
        return end.call(lambda: _call(link, broker_fd, config, payload, end))
    value = _call(link, broker_fd, config, payload)
    if size > 1:
        link.barrier(_serve.EXIT_BARRIER, b"", _serve.FOREVER_S)
    return value


def _check_reach(link: Any, config: Mapping[str, Any]) -> None:
    """Find out, before TensorFlow does, whether all nodes that serve others can be reached."""
    targets = {
        f"{role}:{index}": where
        for role, members in config["cluster"].items()
        if role != "evaluator"
        for index, where in enumerate(members)
    }
    own = f"{config['role']}:{config['index']}"
    _reach.check(own, targets, lambda name, word: link.barrier(name, word, _serve.FOREVER_S))


def _call(
    link: Any,
    broker_fd: int,
    config: Mapping[str, Any],
    payload: bytes,
    end: _serve.TrainingEnd | None = None,
) -> bytes:
    """Unpickle the function, call it, and pickle what it returns."""
    import cloudpickle

    try:
        fn, args = cloudpickle.loads(payload)
    except ImportError as error:
        raise _FunctionError(
            f"the function needs a module that the node cannot import: {error}. Ship it with "
            "spark.addArtifact(…, pyfile=True) or sc.addPyFile, install it on the executors, or "
            "define the function in the main program"
        ) from error
    except Exception as error:
        raise _FunctionError(
            f"the function cannot be unpickled in the node: {type(error).__name__}: {error}"
        ) from error
    with _tensorboard_on_chief(link, config):
        value = fn(Context(link, broker_fd, config, args, end))
    try:
        return bytes(cloudpickle.dumps((value, _transport.report())))
    except Exception as error:
        raise _FunctionError(
            f"what the function returned ({type(value).__name__}) cannot be sent to the driver: "
            f"{type(error).__name__}: {error}. Return plain Python or NumPy values"
        ) from error


def _tensorboard_on_chief(
    link: Any, config: Mapping[str, Any]
) -> contextlib.AbstractContextManager[None]:
    """TensorBoard for the length of the function, on a chief that has to serve it."""
    if int(config["rank"]) != 0:
        return contextlib.nullcontext()
    where = (config["cluster"].get("chief") or [""])[0].rsplit(":", 1)[0]
    return _tensorboard.on_chief(
        config.get("job") or {}, where, lambda word: link.progress(json.dumps(word))
    )


def _report(link: Any, error: BaseException) -> None:
    """Tell the agent how the node failed."""
    failure = describe(error)
    try:
        link.failed(json.dumps(failure))
    except errors.ArcflowError as gone:  # the agent is gone, and ends us anyway
        print(failure["traceback"], f"cannot report this: {gone}", file=sys.stderr)


def describe(error: BaseException) -> dict[str, Any]:
    """Return a failure as the agent takes it: type, message, traceback, peer_loss."""
    text = "".join(traceback.format_exception(error))
    if len(text) > _MAX_TRACEBACK:
        text = text[: _MAX_TRACEBACK // 3] + "\n  …\n" + text[-2 * _MAX_TRACEBACK // 3 :]
    name, message = type(error).__name__, str(error)
    if isinstance(error, SystemExit):
        message = f"the function called sys.exit({error.code!r}); return from it instead"
    if isinstance(error, _FunctionError):
        name = type(error.__cause__).__name__ if error.__cause__ else "Error"
    return {"type": name, "message": message, "traceback": text, "peer_loss": is_peer_loss(error)}


def is_peer_loss(error: BaseException) -> bool:
    """Whether an error looks like the consequence of another node's death."""
    marked = getattr(error, "peer_loss", None)
    if marked is not None:
        return bool(marked)
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        if isinstance(one, errors.AbortedError | errors.UnavailableError | errors.CancelledError):
            return True
        if type(one).__module__.startswith("tensorflow"):
            if type(one).__name__ in _PEER_LOSS_TYPES:
                return True
            if any(text in str(one) for text in _PEER_LOSS_TEXTS):
                return True
        one = one.__cause__ or (None if one.__suppress_context__ else one.__context__)
    return False


if __name__ == "__main__":
    main()
