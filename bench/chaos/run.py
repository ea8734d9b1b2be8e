# SPDX-License-Identifier: Apache-2.0
"""`make chaos`: every victim, fault and stage on a real cluster: is it named, soon, and is nothing left."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ["PYTHONPATH"] = os.pathsep.join(sys.path[:2])

from cells import LEFT_AFTER_S, SILENCE_S, Cell, all_cells, diagonal, named_rightly  # noqa: E402
from faults import SLOW, strike  # noqa: E402
from hosts import JAVA_OPTIONS, MARK, Hosts, leftovers, nodes  # noqa: E402
from page import page  # noqa: E402

from harness import Row, environment, note, print_table, write_json  # noqa: E402

_REACHED_S = 120.0
_LOOK_S = 0.5
_ANSWER_S = 90.0  # after the fault; later than this the run counts as hanging


class Driver:
    """The driver process; made anew when a cell has killed it."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        address = hosts.network.address
        settings = {
            "spark.master": hosts.url,
            "spark.ui.enabled": "false",
            "spark.driver.host": address,
            "spark.driver.bindAddress": address,
            "spark.executor.memory": "600m",
            "spark.executorEnv.PYTHONPATH": os.environ["PYTHONPATH"],
            f"spark.executorEnv.{MARK}": os.environ[MARK],
            "spark.executorEnv.TMPDIR": os.environ["TMPDIR"],
            "spark.executorEnv.CUDA_VISIBLE_DEVICES": "-1",
            "spark.driver.extraJavaOptions": JAVA_OPTIONS,
            "spark.executor.extraJavaOptions": JAVA_OPTIONS,
            "spark.local.dir": str(folder),
            "spark.sql.warehouse.dir": str(folder / "warehouse"),
            "spark.log.level": "OFF",
            "spark.task.maxFailures": "1",
        }
        self._log = (folder / "driver.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "driver.py"), json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            start_new_session=True,  # its Ctrl-C is not ours
            preexec_fn=hosts.driver_container.enter,
        )
        ready = self.answer(120) or {}
        if "ready" not in ready:
            log = (folder / "driver.log").read_text(errors="replace")
            raise RuntimeError(f"the driver did not start ({ready}):\n{log[-4000:]}")

    def ask(self, command: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()

    def answer(self, timeout_s: float) -> dict[str, Any] | None:
        """Return the next answer; None when the driver is silent, a made-up one when it ended."""
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        if not readable:
            return None
        line = self.process.stdout.readline()
        if line:
            return dict(json.loads(line))
        return {"error": "driver ended", "code": self.process.wait(30), "ended": time.time()}

    def close(self) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self.process.stdin.close()  # type: ignore[union-attr]
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


class Table:
    """Runs cells one after the other on one cluster."""

    def __init__(self, hosts: Hosts, folder: Path, patience: float) -> None:
        self._hosts, self._folder, self._patience = hosts, folder, patience
        self._driver: Driver | None = None
        self._struck = 0  # the process that was struck from outside
        # Host of each node of the run, also of those that have ended.
        self._placed: dict[str, int] = {}

    def close(self) -> None:
        if self._driver is not None:
            self._driver.close()
        self._driver = None

    def measure(self, cell: Cell) -> dict[str, Any]:
        """Run one cell: what the driver said, after how long, and what was left."""
        if self._driver is None or self._driver.process.poll() is not None:
            self.close()
            self._driver = Driver(self._hosts, self._folder)
        # What a run that hangs goes on writing stays in the bench's own folder.
        with tempfile.TemporaryDirectory(
            prefix="cell-", dir=self._folder, ignore_cleanup_errors=True
        ) as name:
            folder = Path(name)
            self._placed = {}
            self._driver.ask(self._command(cell, folder))
            try:
                found = self._see(cell, folder)
            finally:
                for host in range(2):
                    self._hosts.network.cut(host, down=False)
        if found.get("hangs") or cell.victim == "coordinator":
            self.close()
        return found

    @staticmethod
    def _command(cell: Cell, folder: Path) -> dict[str, Any]:
        with_ps = cell.victim == "ps"
        return {
            "layout": {"ps": int(with_ps), "evaluator": int(cell.victim == "evaluator")},
            "args": {
                "folder": str(folder),
                "checkpoints": str(folder / "checkpoints"),
                "trigger": cell.trigger,
                "stage": cell.stage,
                "fault": cell.fault,
                "inside": cell.inside,
                "endless": cell.stage != "shutdown" and not cell.goes_on,
            },
        }

    def _see(self, cell: Cell, folder: Path) -> dict[str, Any]:
        driver = self._driver
        assert driver is not None
        struck, cut = folder / "struck", []
        if cell.inside:
            at = _wait_for(struck, driver, self._look)
        else:
            at = _wait_for(folder / "reached", driver, self._look)
            if at is not None:
                at, cut = self._strike(cell, folder)
        if at is None:
            early = driver.answer(1.0)
            return {"says": f"the stage was not reached: {early}", "hangs": early is None}
        answer = driver.answer(_ANSWER_S)
        if answer is None:
            return {"says": "no error", "hangs": True, "left": leftovers()}
        if cell.inside and cell.fault == "out of memory":
            at = _time_in(struck)  # memory lasted until then
        seconds = answer["ended"] - at
        left = self._left()
        if cell.victim == "executor" and cell.fault == "SIGSTOP":
            os.kill(self._struck, signal.SIGKILL)  # or Spark keeps its slots for two minutes
        return {
            "seconds": seconds,
            "named": named_rightly(cell, {**answer, "cut": cut}),
            "in_time": seconds <= self._patience * cell.within_s or answer["error"] is None,
            "left": left,
            "says": _says(answer),
        }

    def _strike(self, cell: Cell, folder: Path) -> tuple[float, list[str]]:
        """Do what the cell says from outside; return when, and the nodes that it takes along."""
        pid, kind = self._target(cell, folder)
        cut: list[str] = []
        if cell.fault == "network cut" or cell.victim == "executor":
            hosts = [0, 1] if cell.victim == "coordinator" else [self._hosts.host_of(pid)]
            self._look()
            cut = [node for node, host in self._placed.items() if host in hosts]
        if cell.fault == "network cut":
            at = time.time()
            for host in hosts:
                self._hosts.network.cut(host)
        else:
            at, self._struck = time.time(), pid
            strike(pid, cell.fault, kind=kind)
            if cell.fault in SLOW:
                at = time.time()
            if cell.goes_on:
                time.sleep(SILENCE_S + 1)
                os.kill(pid, signal.SIGCONT)
        (folder / "struck").write_text(repr(at))
        return at, cut

    def _look(self) -> None:
        for node, pid in nodes().items():
            if node not in self._placed:
                with contextlib.suppress(OSError, LookupError):
                    self._placed[node] = self._hosts.host_of(pid)

    def _target(self, cell: Cell, folder: Path) -> tuple[int, str]:
        if cell.victim == "coordinator":
            assert self._driver is not None
            return self._driver.process.pid, "python"
        if cell.victim in ("chief", "worker", "ps", "evaluator"):
            return nodes()[cell.struck], "python"
        ids = [int(word) for word in (folder / "ids.worker:0").read_text().split()]
        if cell.victim == "agent":
            return ids[1], "native"
        if cell.victim == "feeder":
            return ids[2], "python"
        from arcflow import _executor

        return _executor.jvm_pid(ids[2]), "jvm"

    def _left(self) -> list[str]:
        deadline = time.monotonic() + self._patience * LEFT_AFTER_S
        while (left := leftovers()) and time.monotonic() < deadline:
            time.sleep(0.2)
        return left


def _wait_for(path: Path, driver: Driver, look: Callable[[], None]) -> float | None:
    """Return the time written in `path` once it exists; None when it never comes. Looks meanwhile."""
    deadline = time.monotonic() + _REACHED_S
    look_at = 0.0
    while not path.exists():
        if time.monotonic() > look_at:
            look()
            look_at = time.monotonic() + _LOOK_S
        if time.monotonic() > deadline or driver.process.poll() is not None:
            return None
        if select.select([driver.process.stdout], [], [], 0)[0]:
            return None  # the run has ended without getting there
        time.sleep(0.02)
    return _time_in(path)


def _time_in(path: Path) -> float:
    with contextlib.suppress(ValueError):
        return float(path.read_text())
    return time.time()


def _says(answer: dict[str, Any]) -> str:
    if answer.get("node"):
        return f"{answer['node']}: {answer['cause']}"
    return str(answer.get("error") or "run ended well")


def to_row(cell: Cell, found: dict[str, Any]) -> Row:
    """Return a row of the common form; `met` says that all three conditions hold."""
    left = found.get("left", [])
    met = bool(found.get("named") and found.get("in_time") and not left)
    goal = f"named; <= {cell.within_s:g} s; nothing left after {LEFT_AFTER_S:g} s"
    says = found["says"] + (f"; left: {'; '.join(left)[:200]}" if left else "")
    return Row(cell.name, says, float(found.get("seconds", -1)), "s", goal=goal, met=met)


def measure(
    cells: list[Cell], patience: float = 1, keep: Callable[[list[Row]], None] = lambda rows: None
) -> list[Row]:
    """Run cells on a cluster made for them; return a row for each.

    `patience` multiplies what is allowed in seconds, for machines that are busy with other things.
    `keep` gets the rows so far after each cell.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="arc-chaos-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        (folder / "tmp").mkdir()
        os.environ["TMPDIR"] = str(folder / "tmp")
        with Hosts(folder) as hosts:
            table = Table(hosts, folder, patience)
            try:
                for number, cell in enumerate(cells, 1):
                    row = to_row(cell, table.measure(cell))
                    word = "met" if row.met else "NOT MET"
                    note(
                        f"{number}/{len(cells)} {cell.name}: {row.metric}, {row.value:.1f} s, {word}"
                    )
                    rows.append(row)
                    keep(rows)
            finally:
                table.close()
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/bench/chaos.json"))
    parser.add_argument("--only", default="", help="cells whose name holds this text")
    parser.add_argument("--diagonal", action="store_true", help="one cell of each row and column")
    parser.add_argument("--patience", type=float, default=1, help="factor of the time limits")
    parser.add_argument(
        "--again", action="store_true",
        help="only cells that the file of --output has as not met, or not at all; the others are kept",
    )  # fmt: skip
    parser.add_argument("--page", type=Path, help="write the table as Markdown too")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("hosts are network namespaces and memory cgroups: run as root")
    cells = diagonal() if options.diagonal else list(all_cells())
    cells = [c for c in cells if options.only in c.name]
    kept: dict[str, Row] = {}
    if options.again:
        known = [Row(**row) for row in json.loads(options.output.read_text())["rows"]]
        kept = {row.case: row for row in known if row.met}
    env = environment(["tensorflow-cpu", "pyspark"])

    def table(measured: list[Row]) -> list[Row]:
        of_all = kept | {row.case: row for row in measured}
        return [of_all[c.name] for c in all_cells() if c.name in of_all]

    def keep(measured: list[Row]) -> None:  # a table takes an hour: what is measured is not lost
        options.output.parent.mkdir(parents=True, exist_ok=True)
        lines = [asdict(row) for row in table(measured)]
        options.output.write_text(json.dumps({"env": env, "rows": lines}))

    wanted = [c for c in cells if c.name not in kept]
    rows = table(measure(wanted, options.patience, keep))
    print_table(env, rows)
    write_json(options.output, env, rows)
    if options.page:
        options.page.write_text(page(env, rows))
    missed = [row.case for row in rows if not row.met]
    print(f"{len(rows) - len(missed)} of {len(rows)} cells met")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
