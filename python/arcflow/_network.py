# SPDX-License-Identifier: Apache-2.0
"""Under which address and port a node is reached: by network or interface, and out of a range."""

from __future__ import annotations

import array
import fcntl
import ipaddress
import re
import socket
import struct
from typing import Any

from . import errors

_SIOCGIFCONF = 0x8912
_ENTRY = 40  # bytes of struct ifreq
_MAX_ADDRESSES = 1024


def addresses() -> list[tuple[str, str]]:
    """List (interface, IPv4 address) of this network namespace."""
    buffer = array.array("B", bytes(_ENTRY * _MAX_ADDRESSES))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        packed = struct.pack("iL", len(buffer), buffer.buffer_info()[0])
        length = struct.unpack("iL", fcntl.ioctl(probe.fileno(), _SIOCGIFCONF, packed))[0]
    data = buffer.tobytes()[:length]
    found = []
    for at in range(0, length, _ENTRY):
        name = data[at : at + 16].split(b"\0", 1)[0].decode().split(":")[0]
        found.append((name, socket.inet_ntoa(data[at + 20 : at + 24])))
    return found


def checked(network: str | None) -> str:
    """Return what `choose` takes: ``""``, a network such as ``"10.0.0.0/8"``, or an interface's name.

    Raises
    ------
    InvalidArgumentError
        It is neither.
    """
    if not network:
        return ""
    if "/" in network:
        try:
            return str(ipaddress.IPv4Network(network, strict=False))
        except ValueError as error:
            raise errors.InvalidArgumentError(
                f"network={network!r} is no IPv4 network such as '10.0.0.0/8': {error}"
            ) from error
    if not re.fullmatch(r"[A-Za-z0-9_.:@-]{1,15}", network):
        raise errors.InvalidArgumentError(
            f"network={network!r} is neither a network such as '10.0.0.0/8' nor the name of an interface"
        )
    return network


def choose(network: str) -> str:
    """Return this host's address in a network, or of an interface.

    Raises
    ------
    FailedPreconditionError
        There is none; the message lists what there is.
    """
    there = addresses()
    if "/" in network:
        wanted = ipaddress.IPv4Network(network)
        fitting = [one for _, one in there if ipaddress.IPv4Address(one) in wanted]
    else:
        fitting = [one for name, one in there if name == network]
    if not fitting:
        listed = ", ".join(f"{name} {one}" for name, one in there)
        raise errors.FailedPreconditionError(
            f"network={network!r}: host {socket.gethostname()} has no address there; it has {listed}"
        )
    return fitting[0]


def port_range(ports: Any) -> tuple[int, int]:
    """Return first and last port from a number, ``"40000-40100"`` or None; (0, 0): any.

    Examples
    --------
    >>> port_range("40000-40100"), port_range(4000), port_range(None)
    ((40000, 40100), (4000, 4000), (0, 0))
    """
    if ports is None:
        return 0, 0
    found = re.fullmatch(r"\s*(\d{1,5})\s*(?:-\s*(\d{1,5})\s*)?", str(ports))
    if found:
        first = int(found[1])
        last = int(found[2] or first)
        if 1 <= first <= last <= 65535:
            return first, last
    raise errors.InvalidArgumentError(
        f"ports={ports!r} is neither a port nor a range such as '40000-40100'"
    )


def bind_in(host: str, first: int, last: int) -> socket.socket:
    """Return a socket that is bound to a free port of a range; (0, 0): to any.

    Raises
    ------
    ResourceExhaustedError
        All ports are taken.
    """
    for port in range(first, last + 1):
        bound = socket.socket()
        try:
            bound.bind((host, port))
            return bound
        except OSError:
            bound.close()
    raise errors.ResourceExhaustedError(
        f"all ports from {first} to {last} of {host} are taken: choose a wider range by ports="
    )
