# SPDX-License-Identifier: Apache-2.0
"""The manager's server of the old way: a JoinableQueue that two other processes reach through proxies."""

from __future__ import annotations

import multiprocessing
import sys
import threading
from multiprocessing.managers import BaseManager

from commands import answer

QUEUE: multiprocessing.JoinableQueue = multiprocessing.JoinableQueue(8)


class Manager(BaseManager):
    """Serves the one queue."""


Manager.register("get_queue", callable=lambda: QUEUE)

if __name__ == "__main__":
    server = Manager(address=sys.argv[1], authkey=b"bench").get_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    answer(ready=True)
    sys.stdin.read()  # until the parent is done
