# SPDX-License-Identifier: Apache-2.0
"""Hosts of a bench, made on this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


class Network:
    """Hosts as network namespaces on one bridge; their cables can be pulled. Needs root."""

    def __init__(self, hosts: int) -> None:
        self.tag = f"arc{os.getpid() % 10000}"
        self._net = f"10.{100 + os.getpid() % 100}.0"
        self.address = f"{self._net}.1"
        self._bridge = f"{self.tag}b"
        self._hosts = list(range(hosts))

    def name(self, host: int) -> str:
        return f"{self.tag}h{host}"

    def address_of(self, host: int) -> str:
        return f"{self._net}.{host + 2}"

    def __enter__(self) -> Network:
        ip("link", "add", self._bridge, "type", "bridge")
        ip("addr", "add", f"{self.address}/24", "dev", self._bridge)
        ip("link", "set", self._bridge, "up")
        for host in self._hosts:
            name, inner, outer = self.name(host), f"{self.tag}i{host}", f"{self.tag}o{host}"
            ip("netns", "add", name)
            ip("link", "add", outer, "type", "veth", "peer", "name", inner)
            ip("link", "set", inner, "netns", name)
            ip("link", "set", outer, "master", self._bridge)
            ip("link", "set", outer, "up")
            ip("-n", name, "addr", "add", f"{self.address_of(host)}/24", "dev", inner)
            ip("-n", name, "link", "set", inner, "up")
            ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *_: object) -> None:
        for host in self._hosts:
            ip("netns", "del", self.name(host), check=False)
        ip("link", "del", self._bridge, check=False)

    def prefix(self, host: int) -> list[str]:
        """Return what a command on that host begins with."""
        return ["ip", "netns", "exec", self.name(host)]

    def limit(self, mbit: int) -> None:
        """Let each host send no more than `mbit` Mbit/s."""
        for host in self._hosts:
            command = f"qdisc replace dev {self.tag}i{host} root tbf rate {mbit}mbit"
            words = [*command.split(), "burst", "256kb", "latency", "50ms"]
            subprocess.run([*self.prefix(host), "tc", *words], check=True)

    def sent_bytes(self, host: int) -> int:
        """Bytes that have left a host, headers and all, as the kernel counts them."""
        return int(Path(f"/sys/class/net/{self.tag}o{host}/statistics/rx_bytes").read_text())

    def cut(self, host: int, *, down: bool = True) -> None:
        """Pull the cable of a host, or put it back."""
        ip("link", "set", f"{self.tag}o{host}", "down" if down else "up")


def ip(*arguments: str, check: bool = True) -> None:
    subprocess.run(["ip", *arguments], check=check, capture_output=not check)
