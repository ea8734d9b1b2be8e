# SPDX-License-Identifier: Apache-2.0
"""Process that feeds a node as Arcflow's Spark task does, from record batches that lie in memory."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

from shapes import SHAPES

from arcflow import _core, _executor
from commands import answer, commands


def write(link: Any, feed: str, pool: list[Any], batches: int) -> None:
    for i in range(batches):
        if not link.write(feed, pool[i % len(pool)]):
            raise RuntimeError("the node wants no more rows")


def main() -> None:
    link: Any = None
    pools: dict[str, list[Any]] = {}
    for command in commands():
        if command["do"] == "launch":
            payload = base64.b64decode(command["payload"])
            link = _core.AgentLink.launch(
                _executor.agent_path(), json.dumps(command["config"]), payload
            )
            answer(agent=link.pid)
        elif command["do"] == "detach":
            while not link.detach(1.0):
                pass
            answer(detached=True)
        elif command["do"] == "prepare":
            pools[command["shape"]] = SHAPES[command["shape"]].record_batches()
            answer(prepared=len(pools[command["shape"]]))
        elif command["do"] == "write":
            start = time.perf_counter()
            write(link, command["feed"], pools[command["shape"]], command["batches"])
            answer(seconds=time.perf_counter() - start)
        elif command["do"] == "end":
            for feed in command["feeds"]:
                link.end(feed)
            deadline = time.monotonic() + 600
            while (ended := link.wait(1.0)) is None and time.monotonic() < deadline:
                pass
            outcome, result = (json.loads(ended[0]), bytes(ended[1])) if ended else (None, b"")
            answer(outcome=outcome, result=base64.b64encode(result).decode())
    if link is not None:
        link.close()


if __name__ == "__main__":
    main()
