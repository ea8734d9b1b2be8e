# SPDX-License-Identifier: Apache-2.0
"""Process that feeds an agent of another host as a Spark task does, from record batches in memory."""

from __future__ import annotations

import json
import time

from shapes import SHAPES

from arcflow import _core, _side_task
from commands import answer, commands

SEGMENT_BYTES = 16 << 20


def main() -> None:
    for command in commands():
        if command["do"] == "prepare":
            shape = SHAPES[command["shape"]]
            pool = shape.record_batches()
            schema = json.dumps({"columns": [shape.column]})
            answer(prepared=len(pool))
            continue
        secret = bytes.fromhex(command["secret"])
        link = _core.SideLink.remote(command["host"], command["port"], secret, command["encrypt"])
        about = {"op": "attach", "kind": "feed", "feed": "bench", "job": command["job"]}
        link.send(json.dumps({**about, "partition": 0, "attempt": 0, "cache": "auto"}), schema)
        stage = _side_task.answer(link, "attached")[0]["stage"]
        start = time.perf_counter()
        link.begin(stage, schema, SEGMENT_BYTES)
        for i in range(command["batches"]):
            link.write(pool[i % len(pool)])
        link.finish()
        link.send('{"op": "seal"}')
        rows = int(_side_task.answer(link, "sealed")[0]["rows"])  # all are there
        answer(seconds=time.perf_counter() - start, rows=rows)
        link.close()


if __name__ == "__main__":
    main()
