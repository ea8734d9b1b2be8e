# SPDX-License-Identifier: Apache-2.0
"""A bench's child process: commands of its parent and answers to them, one JSON object a line in each direction.

For children only: importing it keeps standard output for answers, and sends to standard error what
TensorFlow and others print.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

_ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)


def commands() -> Iterator[dict[str, Any]]:
    """Say that this child is ready, then yield commands until the parent closes the pipe."""
    answer(ready=True)
    for line in sys.stdin:
        yield json.loads(line)


def answer(**values: Any) -> None:
    print(json.dumps(values), file=_ANSWERS)
