# SPDX-License-Identifier: Apache-2.0
"""Writes the corpus of segment_fuzz: a sound segment of each schema, and one with each kind of damage."""

import pathlib
import struct

FOLDER = pathlib.Path(__file__).parent / "segment_fuzz"
F32, STRING, INT64, BOOL = 1, 7, 9, 10
ITEM_BYTES = {
    STRING: 1,
    F32: 8,
    INT64: 8,
}  # of ragged columns: the fuzz target has items of two floats


def align(n):
    """Round up to the alignment of regions."""
    return (n + 63) // 64 * 64


def segment(rows, columns, **damage):
    """Header, descriptors and regions of `rows` rows of capacity.

    `columns` holds (dtype, row_bytes, content, string bytes or None); `damage` replaces fields.
    """
    end = 64 + 64 * len(columns)
    descriptors, regions = b"", []
    for dtype, row_bytes, content, string_bytes in columns:
        size = 8 * (rows + 1) if string_bytes is not None else row_bytes * rows
        offset = align(end)
        end = offset + size
        regions.append((offset, content.ljust(size, b"\0")))
        data_offset = data_size = 0
        if string_bytes is not None:
            data_offset, data_size = align(end), len(string_bytes)
            end = data_offset + data_size
            regions.append((data_offset, string_bytes))
        descriptors += struct.pack(
            "<iIQQQQQQ8x",
            damage.get("dtype", dtype),
            int(string_bytes is not None),
            row_bytes,
            damage.get("offset", offset),
            size,
            damage.get("data_offset", data_offset),
            damage.get("data_size", data_size),
            damage.get("item_bytes", ITEM_BYTES.get(dtype, 0) if string_bytes is not None else 0),
        )
    total = align(end)
    header = struct.pack(
        "<IIQQQ32x",
        damage.get("magic", 0x53435241),
        damage.get("version", 2),
        damage.get("size", total),
        damage.get("capacity", rows),
        len(columns),
    )
    image = bytearray(total)
    image[: len(header)] = header
    image[64 : 64 + len(descriptors)] = descriptors
    for offset, content in regions:
        image[offset : offset + len(content)] = content
    return bytes(image)


def case(name, schema, rows, image):
    """Write one input of the fuzz target."""
    (FOLDER / name).write_bytes(struct.pack("<HB", rows, schema) + image)


def offsets(*values):
    """Packed int64."""
    return struct.pack(f"<{len(values)}q", *values)


def main():
    """Write all inputs."""
    FOLDER.mkdir(exist_ok=True)
    floats = struct.pack("<12f", *range(12))

    def mixed(ends=(0, 1, 1, 4, 4), **damage):
        return segment(4, [(F32, 12, floats, None), (STRING, 0, offsets(*ends), b"abcd")], **damage)

    case("mixed", 0, 4, mixed())
    strings = [(STRING, 0, offsets(0, 2, 3), b"xyz"), (STRING, 0, offsets(0, 0, 0), b"")]
    case("strings", 1, 2, segment(2, strings))
    case("narrow", 2, 8, segment(8, [(BOOL, 1, b"\0\1" * 4, None), (INT64, 0, b"", None)]))
    ragged = [
        (F32, 0, offsets(0, 8, 8, 24), floats[:24]),
        (INT64, 0, offsets(0, 8, 8, 8), b"\5" * 8),
    ]
    case("cut_item", 3, 3, segment(3, [(F32, 0, offsets(0, 4, 8, 24), floats[:24]), ragged[1]]))
    case("ragged", 3, 3, segment(3, ragged))
    case("too_many_rows", 0, 5, mixed())
    case("falling_offsets", 0, 4, mixed((0, 3, 1, 4, 4)))
    case("negative_offset", 0, 4, mixed((-9, 1, 1, 4, 4)))
    case("offset_outside", 0, 4, mixed((0, 1, 1, 4, 1 << 62)))
    case("magic", 0, 4, mixed(magic=1))
    case("version", 0, 4, mixed(version=1))
    case("size_outside", 0, 4, mixed(size=1 << 40))
    case("capacity_overflow", 0, 4, mixed(capacity=(1 << 64) - 1))
    case("offset_overflow", 0, 4, mixed(offset=(1 << 64) - 64))
    case("data_overflow", 0, 4, mixed(data_size=(1 << 64) - 1))
    case("overlap", 0, 4, mixed(data_offset=192))
    case("dtype", 0, 4, mixed(dtype=-1))
    case("truncated", 0, 4, mixed()[:100])
    case("tiny", 0, 0, b"A")


if __name__ == "__main__":
    main()
