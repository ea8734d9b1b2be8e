# SPDX-License-Identifier: Apache-2.0
"""Hosts as network namespaces on one bridge; needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Self


def ip(*words: str) -> bool:
    """Run ``ip``; tell whether it worked."""
    return subprocess.run(["ip", *words], capture_output=True, check=False).returncode == 0


def namespaces_work() -> bool:
    """Tell whether this process may make any."""
    name = f"arc{os.getpid()}t"
    return bool(shutil.which("ip")) and ip("netns", "add", name) and ip("netns", "del", name)


class Namespaces:
    """As many hosts as asked for, each with an address; this process is on the bridge."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._tag = f"arc{os.getpid() % 100000}"
        self.net = f"10.{100 + os.getpid() % 100}.{os.getpid() // 100 % 250}"
        self.driver = f"{self.net}.1"

    def __enter__(self) -> Self:
        bridge = f"{self._tag}b"
        assert ip("link", "add", bridge, "type", "bridge")
        assert ip("addr", "add", f"{self.driver}/24", "dev", bridge)
        assert ip("link", "set", bridge, "up")
        for number in range(self.count):
            space, outer = f"{self._tag}n{number}", f"{self._tag}v{number}"
            assert ip("netns", "add", space)
            assert ip("link", "add", outer, "type", "veth", "peer", "name", "eth0", "netns", space)
            assert ip("link", "set", outer, "master", bridge, "up")
            inside = ("netns", "exec", space, "ip")
            assert ip(*inside, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
            assert ip(*inside, "link", "set", "eth0", "up")
            assert ip(*inside, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for number in range(self.count):
            ip("netns", "del", f"{self._tag}n{number}")
        ip("link", "del", f"{self._tag}b")

    def address(self, number: int) -> str:
        return f"{self.net}.{11 + number}"

    def prefix(self, number: int) -> list[str]:
        """Return what a command on host `number` begins with."""
        return ["ip", "netns", "exec", f"{self._tag}n{number}"]

    def cut(self, address: str) -> None:
        """Pull the cable of the host with that address."""
        number = int(address.rsplit(".", 1)[1]) - 11
        assert ip("link", "set", f"{self._tag}v{number}", "down")
