#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the seeds of wire_fuzz and session_fuzz beside this file, from docs/formats/transport.md."""

from __future__ import annotations

import struct
from pathlib import Path

HERE = Path(__file__).parent
NODE = bytes(range(16))


def frame(kind: int, inline: bytes = b"", **fields: int) -> bytes:
    """One frame; the fields are those of the page."""
    values = {
        "status": 0,
        "channel": 0,
        "payload": 0,
        "op": 0,
        "key": 0,
        "offset": 0,
        "total": 0,
        "ref": 0,
    }
    values.update(fields)
    return (
        struct.pack(
            "<HBBHHIIQQQQQ",
            0x4641,
            kind,
            values["status"],
            values["channel"],
            0,
            len(inline),
            values["payload"],
            values["op"],
            values["key"],
            values["offset"],
            values["total"],
            values["ref"],
        )
        + inline
    )


def region(key: int = 5, size: int = 100) -> bytes:
    """Return a serialised remote region."""
    return struct.pack("<IHB9xQQ16s", 0x52435241, 1, 3, key, size, NODE)


def address() -> bytes:
    """Return an address with two entries."""
    out = struct.pack("<IHH16s", 0x41435241, 1, 2, NODE)
    for name, where in ((b"tcp", b"127.0.0.1:4711"), (b"shm", b"arcflow-" + b"0" * 32)):
        out += struct.pack("<HH", len(name), len(where)) + name + where
    return out


def hello() -> bytes:
    """Return a hello without the length in front."""
    return struct.pack("<IH16sQHH", 0x48435241, 1, NODE, 77, 1, 4) + b"extra"


WIRE = {
    "region": b"\0" + region(),
    "region_no_key": b"\0" + region(key=0),
    "region_cut": b"\0" + region()[:-1],
    "address": b"\1" + address(),
    "address_cut": b"\1" + address()[:-3],
    "hello": b"\2" + hello(),
    "header_put": b"\3" + frame(1, b"abcdnotice", total=4),
    "header_piece": b"\3" + frame(2, payload=4096, total=8192),
    "header_piece_outside": b"\3" + frame(8, payload=4096, offset=5000, total=8192),
    "header_overflow": b"\3" + frame(2, payload=1, offset=2**64 - 1, total=1),
    "header_unknown": b"\3" + frame(99),
}
VALIDITY = struct.pack("<QQ", 4096, 9)
SESSION = {
    "put": frame(1, b"abcd", total=4, offset=10) + frame(12, b"hi") + frame(13, op=3),
    "put_outside": frame(1, b"abcd", total=4, offset=4093),
    "put_end": frame(1, b"abcd", total=4, offset=4092),
    "pieces": frame(2, op=1, payload=2000, total=4000)
    + frame(3, op=1, total=4000)
    + frame(2, op=1, payload=2000, offset=2000, total=4000),
    "pieces_too_long": frame(2, op=1, payload=4000, total=4000)
    + frame(2, op=1, payload=4000, total=4000)
    + frame(3, op=1, total=4000),
    "pieces_two_regions": frame(2, op=1, payload=9, total=20)
    + frame(2, op=1, key=9, payload=9, total=20)
    + frame(3, op=1, total=20),
    "abort_before_piece": frame(5, op=2, offset=100, total=200)
    + frame(2, op=2, payload=100, total=200),
    "commit_twice": frame(3, op=2, total=20) + frame(3, op=2, total=20),
    "reference": frame(4, VALIDITY + b"notice", op=4, total=4096)
    + frame(3, b"notice", op=4, total=4096),
    "reference_outside": frame(4, VALIDITY, op=4, total=4097),
    "get": frame(7, op=1, total=4096) + frame(7, op=2, total=40000) + frame(11, op=1),
    "answers": frame(8, op=1, payload=50000, total=100000)
    + frame(8, op=1, payload=50000, offset=50000, total=100000)
    + frame(10, op=1, total=100000)
    + frame(10, b"x" * 100, op=2, total=100)
    + frame(6, op=3)
    + frame(14, op=4),
    "answer_short": frame(10, b"x" * 99, op=2, total=99),
    "answer_error": frame(10, b"no such region", op=1, status=5, total=100000)
    + frame(6, b"no", op=3, status=5),
    "answer_wrong_kind": frame(6, op=1),
    "get_by_reference": frame(9, VALIDITY, op=1, total=100000) + frame(10, op=1, total=100000),
    "ping_bye": frame(15) + frame(16) + frame(18),
}


def main() -> None:
    """Write one file a seed."""
    for folder, seeds in (("wire_fuzz", WIRE), ("session_fuzz", SESSION)):
        (HERE / folder).mkdir(exist_ok=True)
        for name, data in seeds.items():
            (HERE / folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
