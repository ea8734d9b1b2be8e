# SPDX-License-Identifier: Apache-2.0
"""The native core: coordinator, agents, nodes and feeds. Errors are classes of `arcflow.errors`.

Every call that waits releases the GIL and can be interrupted by Ctrl-C.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

version: str

class _ArrowArray(Protocol):
    def __arrow_c_array__(
        self, requested_schema: object | None = None
    ) -> tuple[object, object]: ...

class Coordinator:
    """The server that all agents of a run join; a thread of this process."""

    def __init__(
        self,
        bind_host: str,
        advertise_host: str,
        port: int,
        secret: bytes,
        size: int,
        options_json: str = "{}",
    ) -> None:
        """Listen and start; `secret` is 32 bytes, `options_json` holds ``run_id`` and the tuning."""

    @property
    def address(self) -> str:
        """``"host:port"`` that agents connect to."""

    def next_event(self, timeout_s: float) -> str | None:
        """The next event as JSON; None when none came in time, or after ``all_finished``."""

    def stop(self, code: str, reason: str) -> None:
        """End the run with a status code such as ``"CANCELLED"``; does not wait."""

    def request_log(self, rank: int, lines: int) -> None:
        """Ask a node for its last lines; they come as an event ``node_log``."""

    def tell(self, json: str) -> None:
        """Tell all agents of a run that lives on something: a JSON object with ``act``."""

    def close(self) -> None:
        """Tell agents that are still there to stop, and end the thread."""

class AgentLink:
    """A Spark task's hold on the agent that it started; the agent ends with it."""

    @staticmethod
    def launch(agent_path: str, config_json: str, payload: bytes) -> AgentLink:
        """Start an agent; `payload` is what its node finds as ``NodeLink.config()[1]``."""

    def write(self, feed: str, batch: _ArrowArray) -> bool:
        """Append a record batch to a feed; False when the node wants no more rows."""

    def end(self, feed: str) -> None:
        """Say that the feed has no more rows."""

    def abort(self, code: str, message: str, traceback: str) -> None:
        """Say that the feeder failed; this becomes the node's failure."""

    def wait(self, timeout_s: float) -> tuple[str, bytes] | None:
        """The outcome (JSON) and what the node returned; None when it is not there in time."""

    def detach(self, timeout_s: float) -> bool:
        """Wait until an agent with ``side`` runs its node and lives on without this task; True then.

        `CancelledError` when there is an outcome instead.
        """

    def follow(self, timeout_s: float) -> bool:
        """Wait for the end of a detached agent, reap it and clear up after it; False: not ended yet."""

    def close(self, timeout_s: float = 10.0) -> None:
        """End the agent, after `timeout_s` by force."""

    @property
    def pid(self) -> int:
        """Process id of the agent."""

    def stats(self) -> dict[str, Any]:
        """``acquires``, ``acquire_wait_ns``, ``publishes``, and rows, bytes, wait_ns of each feed."""

class NodeLink:
    """A node's session with its agent; one per process."""

    def __init__(self, broker_fd: int) -> None:
        """Open the session and wait until the run has started; sets ``ARCFLOW_COUNTER_FD``."""

    def config(self) -> tuple[str, bytes]:
        """The node's configuration (JSON) and payload."""

    def log(self, text: str) -> None:
        """Show a line on the driver."""

    def progress(self, json: str) -> None:
        """Send a JSON object as a ``node`` event to the driver."""

    def barrier(self, name: str, payload: bytes, timeout_s: float, ranks: int = 0) -> list[bytes]:
        """Wait for all ranks; what each brought, by rank."""

    def result(self, bytes: bytes) -> None:
        """Hand over what the node returns; once."""

    def failed(self, json: str) -> None:
        """Report an exception: ``type``, ``message``, ``traceback``, ``peer_loss``."""

    def counters(self) -> dict[str, int | float]:
        """The counters that the agent sees."""

    def busy(self, reason: str) -> None:
        """Say that no progress is to be expected, and why; empty when that is over."""

    def alive(self) -> None:
        """Count a sign of progress."""

    @property
    def stacks_fd(self) -> int:
        """File that the handlers for stacks write to; -1 without one."""

    @property
    def stacks_signal(self) -> int:
        """Signal by which the agent asks for the Python stacks of all threads."""

    def python_stacks(self) -> None:
        """Tell the agent that `stacks_signal` is handled."""

    def set_progress(self, step: int, epoch: int, loss: float) -> None:
        """Set the user's counters; costs no call to anybody."""

class FeedReader:
    """One pass over a feed as NumPy batches, without TensorFlow."""

    def __init__(
        self,
        broker_fd: int,
        feed: str,
        batch_size: int,
        remainder: str = "pad",
        shuffle_seed: int | None = None,
    ) -> None:
        """Open a reader; `remainder` is ``"pad"``, ``"drop"``, ``"refuse"`` or ``"partial"``."""

    def next(
        self, timeout_s: float
    ) -> tuple[dict[str, np.ndarray[Any, Any] | list[bytes]], int] | None:
        """The next batch and how many rows at its end are padding; None at the end of the pass.

        Arrays may lie in shared memory and are read-only then; they keep it until they are dropped.
        """

    @property
    def position(self) -> int:
        """Steps handed out since the start of the pass."""

    def seek(self, step: int, epoch: int | None = None) -> None:
        """Go on at a step; in the shuffled order of another epoch if one is given."""

    @property
    def schema_json(self) -> str:
        """The feed's schema."""

    def cancel(self) -> None:
        """Make a blocked and every later `next` raise `CancelledError`; from any thread."""

class SideLink:
    """A Spark task's link to an agent that lives on; one stage at a time."""

    def __init__(self, address: str, secret: bytes) -> None:
        """Connect to an abstract Unix address; `NotFoundError` when nobody listens there."""

    @staticmethod
    def remote(host: str, port: int, secret: bytes, encrypt: bool) -> SideLink:
        """Connect to an agent of another executor by TCP; `UnavailableError` when it cannot be reached."""

    def send(self, json: str, document: str = "") -> None:
        """Send a packet, with a document beside it if there is one."""

    def receive(self, timeout_s: float) -> tuple[str, bytes] | None:
        """The next packet (JSON) and what came with it; None when none came in time."""

    def begin(self, stage: str, schema_json: str, segment_bytes: int) -> None:
        """Write the rows that follow into a stage."""

    def write(self, batch: _ArrowArray) -> bool:
        """Append a record batch to the stage; False when the node wants no more rows."""

    def finish(self) -> None:
        """Close the stage's last segment."""

    def close(self) -> None:
        """Close the connection and unmap its memory."""

class NodeSession:
    """A session of a node with its agent, as packets."""

    def __init__(self, broker_fd: int, what: str) -> None:
        """Open a session."""

    def send(self, json: str, bytes: bytes | None = None) -> None:
        """Send a packet, with bytes beside it (in a memfd) if there are any."""

    def receive(self, timeout_s: float) -> tuple[str, bytes] | None:
        """The next packet (JSON) and what came with it; None when none came in time."""

class HdfsFile:
    """A file of HDFS, open for reading. Threads: any."""

    def __init__(self, uri: str) -> None: ...
    def read(self, offset: int, size: int) -> bytes:
        """Bytes from `offset` on, fewer than `size` only at the file's end."""
    @property
    def size(self) -> int:
        """Length in bytes."""

def hdfs_read(uri: str, max_bytes: int) -> bytes:
    """The bytes of a file at an ``hdfs://`` path; see `arcflow.files`."""

def hdfs_write(uri: str, bytes: bytes) -> None:
    """Write a file that has its name only when it is whole."""

def hdfs_append(uri: str, bytes: bytes) -> None:
    """Append to a file; one that does not exist is made."""

def hdfs_stat(uri: str) -> dict[str, Any]:
    """``name``, ``is_directory``, ``length`` (bytes) and ``modified_ms`` of a file or folder."""

def hdfs_list(uri: str) -> list[dict[str, Any]]:
    """As `hdfs_stat`, for every entry of a folder."""

def hdfs_glob(pattern: str) -> list[str]:
    """Paths that match, sorted."""

def hdfs_mkdirs(uri: str) -> None:
    """Make a folder and those above it."""

def hdfs_delete(uri: str, recursive: bool = False) -> None:
    """Delete a file or folder."""

def hdfs_rename(source: str, target: str, overwrite: bool = True) -> None:
    """Give another name within one cluster."""

def hdfs_delegation_token(uri: str, renewer: str = "") -> str:
    """A new delegation token in URL form, as ``ARCFLOW_HDFS_TOKEN`` takes it."""
