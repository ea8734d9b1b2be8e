# SPDX-License-Identifier: Apache-2.0
"""Progress that people see: one bar in a terminal or notebook, plain lines anywhere else."""

from __future__ import annotations

import contextlib
import html
import math
import sys
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, TextIO

from ._metrics import share

# Plain lines come at most this often.
_PLAIN_INTERVAL_S = 10.0
# Below this share of waiting nobody would call a run feed-bound.
_FEED_BOUND_SHARE = 0.1
_FORMAT = "{desc} [{elapsed}]"


class Progress:
    """Shows how far a run is. Everything it is told may come at any rate.

    Parameters
    ----------
    size
        Number of nodes.
    feeds
        Names of the feeds.
    enabled
        False shows nothing, and drops log lines too.
    stream
        Where to write; standard error by default.
    """

    def __init__(
        self, size: int, feeds: Sequence[str], enabled: bool = True, *, stream: TextIO | None = None
    ) -> None:
        self._size = size
        self._feeds = list(feeds)
        self._enabled = enabled
        self._stream = stream or sys.stderr
        self._bar: Any = None
        self._text = self._phase = "starting"
        self._links: dict[str, str] = {}
        self._facts: dict[str, Any] = {}
        self._last_counters: dict[int, tuple[int, int]] = {}
        self._bound = ""
        self._next_plain = time.monotonic() + _PLAIN_INTERVAL_S

    def __enter__(self) -> Progress:
        if self._enabled and (self._stream.isatty() or _in_notebook()):
            from tqdm.auto import tqdm

            keywords = {} if _in_notebook() else {"file": self._stream}
            self._bar = tqdm(
                total=None, bar_format=_FORMAT, desc=self._text, leave=True, **keywords
            )
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._links.clear()  # what they lead to has ended
        if exc_type is None:
            self._show(self._summary() or "done", force=True)
        if self._bar is not None:
            self._bar.close()

    def note(self, text: str) -> None:
        """Show a phase of the run."""
        self._phase = text
        self._show(text, force=True)

    def link(self, name: str, url: str) -> None:
        """Show an address that belongs to the run, from now on also in the bar."""
        self._links[name] = url
        if not self._enabled:
            return
        if _in_notebook():
            from IPython.display import HTML, display

            display(
                HTML(
                    f'{html.escape(name)}: <a href="{html.escape(url)}" target="_blank">{html.escape(url)}</a>'
                )
            )
        else:
            self.line(f"{name}: {url}")
        self._show(self._summary() or self._phase, force=True)

    def line(self, text: str) -> None:
        """Show a line that rank 0 wrote, above the bar."""
        if not self._enabled:
            return
        if self._bar is not None:
            self._bar.write(text, file=None if _in_notebook() else self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def node(self, rank: int, said: Mapping[str, Any]) -> None:
        """Take what the user's program said through ``ctx.log(name=value)``."""
        if rank == 0:
            self._facts.update(said)
            self._show(self._summary())

    def update(self, ranks: Sequence[Mapping[str, Any]]) -> None:
        """Take the counters that agents reported."""
        fed = {
            name: sum(int(rank.get("feeds", {}).get(name, {}).get("rows", 0)) for rank in ranks)
            for name in self._feeds
        }
        self._facts["fed"] = fed
        counters = {int(r["rank"]): r.get("counters") or {} for r in ranks}
        self._facts["steps"] = max((int(c.get("steps", 0)) for c in counters.values()), default=0)
        chief = counters.get(0, {})
        for key in ("user_step", "user_epoch"):
            if chief.get(key):
                self._facts[key] = int(chief[key])
        loss = chief.get("user_loss")
        if isinstance(loss, int | float) and math.isfinite(loss):
            self._facts["loss"] = float(loss)
        self._bound = self._what_bounds(counters) or self._bound
        self._show(self._summary())

    def _what_bounds(self, counters: Mapping[int, Mapping[str, Any]]) -> str:
        """Compare what nodes waited for rows with what they computed, since the last look."""
        waited = computed = 0
        for rank, now in counters.items():
            pair = int(now.get("wait_ns", 0)), int(now.get("compute_ns", 0))
            before = self._last_counters.get(rank, (0, 0))
            self._last_counters[rank] = pair
            waited += max(0, pair[0] - before[0])
            computed += max(0, pair[1] - before[1])
        if waited + computed == 0:
            return ""
        waiting = share(waited, computed)
        if waiting >= _FEED_BOUND_SHARE:
            return f"feed-bound {waiting:.0%}"
        return f"compute-bound {1 - waiting:.0%}"

    def _summary(self) -> str:
        facts = self._facts
        parts = [f"{name} {rows:,} rows" for name, rows in facts.get("fed", {}).items() if rows]
        step = facts.get("user_step") or facts.get("steps")
        if step:
            parts.append(f"step {step:,}")
        if facts.get("user_epoch"):
            parts.append(f"epoch {facts['user_epoch'] + 1}")
        known = {"fed", "steps", "user_step", "user_epoch", "loss", "epoch", "step"}
        if "loss" in facts:
            parts.append(f"loss {float(facts['loss']):.4g}")
        parts += [
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in facts.items()
            if key not in known
        ]
        if self._bound and parts:
            parts.append(self._bound)
        return " | ".join(parts)

    def _show(self, text: str, force: bool = False) -> None:
        if not self._enabled or not text:
            return
        text = " | ".join([text, *self._links.values()])
        self._text = f"{self._size} nodes: {text}" if self._size > 1 else f"1 node: {text}"
        if self._bar is not None:
            self._bar.set_description_str(self._text, refresh=True)
            return
        now = time.monotonic()
        if force or now >= self._next_plain:
            self._next_plain = now + _PLAIN_INTERVAL_S
            print(f"arcflow: {self._text}", file=self._stream, flush=True)


def _in_notebook() -> bool:
    """Whether a Jupyter kernel shows our output."""
    ipython = sys.modules.get("IPython")
    if ipython is None:
        return False
    with contextlib.suppress(Exception):
        shell = ipython.get_ipython()
        return shell is not None and shell.has_trait("kernel")
    return False
