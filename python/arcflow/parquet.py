# SPDX-License-Identifier: Apache-2.0
"""Parquet files as the data of a run: the tasks read them by Arrow, and no row passes through the JVM."""

from __future__ import annotations

import dataclasses
import urllib.parse
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from . import errors, files
from .feed import Feed
from .schema import quote, to_arrow

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

# Columns of the frame that the tasks get instead of rows: of a file, every `parts`-th row group
# from number `part` on.
_SPLIT = ("file", "part", "parts")
# From so many files on each is read by one task; of fewer, row groups are shared out.
_MANY_FILES = 256
# As Spark's batches on their way to a feed: they stay in a core's cache (`arcflow._job`).
_BATCH_BYTES = 1 << 20
_MOST_ROWS = 65_536


class ParquetFeed(Feed):
    """Parquet files, and how their columns become tensors.

    For rows that need no more work by Spark. Arrays above all: Spark's reader hands them on value by
    value, while here their columns go from the file to the feed as they are. Columns and types are
    those of `spark.read.parquet(path)`; every row is fed once. Each task reads row groups, so files
    with a few of them at least for each node are shared out best.

    Parameters
    ----------
    spark : pyspark.sql.SparkSession
        The session of the cluster.
    path
        One or several paths as of `spark.read.parquet`. Executors must be able to read them: a local or
        mounted folder, ``hdfs://`` (and ``webhdfs://``, ``viewfs://``), or what pyarrow opens by its
        URI, such as ``s3://``.
    columns, **options
        As of `Feed`. `order_by` and `stable` are not needed: rows have the order of their files.

    Raises
    ------
    InvalidArgumentError
        `order_by` or `stable` was given.

    Examples
    --------
    >>> cluster.run(train, data=ParquetFeed(spark, "hdfs:///rows"))  # doctest: +SKIP
    """

    def __init__(self, spark: Any, path: str | Sequence[str], **options: Any) -> None:
        for name in ("order_by", "stable"):
            if options.get(name):
                raise errors.InvalidArgumentError(
                    f"ParquetFeed takes no {name}=: its rows have the order of their files"
                )
        paths = [path] if isinstance(path, str) else list(path)
        super().__init__(spark.read.parquet(*paths), **options)
        self._spark = spark

    def frame(self, names: Sequence[str]) -> Any:
        """Return what the tasks get: parts of files.

        Raises
        ------
        InvalidArgumentError
            There are no files, or a column is not in them but in the names of their folders.
        """
        found = sorted(self.df.inputFiles())
        if not found:
            raise errors.InvalidArgumentError("ParquetFeed found no files: check its path")
        folders = urllib.parse.urlsplit(found[0]).path.split("/")[:-1]
        inside = {urllib.parse.unquote(one.split("=")[0]) for one in folders if "=" in one}
        if inside & set(names):
            raise errors.InvalidArgumentError(
                f"ParquetFeed reads what is in the files, and {sorted(inside & set(names))} are in the "
                f"names of their folders: leave them out by columns=, or use Feed(spark.read.parquet(…))"
            )
        groups = {file: 1 if len(found) >= _MANY_FILES else _row_groups(file) for file in found}
        splits = [
            (file, part, parts)
            for part in range(max(groups.values()))
            for file, parts in groups.items()
            if part < parts
        ]
        return self._spark.createDataFrame(splits, "file string, part int, parts int")

    def reader(self, names: Sequence[str]) -> Reader:
        """Return what makes rows of the frame's."""
        schema = to_arrow(self.df.select(*map(quote, names)).schema)
        return Reader(tuple(names), schema.serialize().to_pybytes())


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads parts of Parquet files in a task.

    Attributes
    ----------
    columns
        To read, in this order.
    schema
        Their types as Spark has them: a serialized Arrow schema.
    """

    columns: tuple[str, ...]
    schema: bytes

    @property
    def inputs(self) -> list[str]:
        """Columns of the frame that says what to read."""
        return list(_SPLIT)

    def rows(self, splits: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        """Yield the rows of parts of files.

        Raises
        ------
        DataLossError
            A file cannot be read, or holds other columns or types than the first one did; names it.
        """
        import pyarrow as pa

        for one in splits.to_pylist():
            try:
                yield from self._part(one["file"], one["part"], one["parts"])
            except (pa.ArrowException, OSError, KeyError) as error:
                raise errors.DataLossError(
                    f"cannot read Parquet file {one['file']}: {type(error).__name__}: {error}"
                ) from error

    def _part(self, name: str, part: int, parts: int) -> Iterator[pa.RecordBatch]:
        import pyarrow as pa
        import pyarrow.parquet as pq

        wanted = pa.ipc.read_schema(pa.py_buffer(self.schema))
        with _open(name) as source:
            file = pq.ParquetFile(source, coerce_int96_timestamp_unit="us")
            groups = list(range(part, file.num_row_groups, parts))
            if not groups:
                return
            absent = [column for column in self.columns if column not in file.schema_arrow.names]
            if absent:
                raise KeyError(
                    f"no column {', '.join(absent)}; there are {file.schema_arrow.names}"
                )
            for batch in file.iter_batches(
                _batch_rows(file.metadata, groups),
                row_groups=groups,
                columns=list(self.columns),
                use_threads=False,  # a task has one core
            ):
                arrays = [batch.column(field.name).cast(field.type) for field in wanted]
                yield pa.RecordBatch.from_arrays(arrays, names=list(self.columns))


def _batch_rows(metadata: pq.FileMetaData, groups: Sequence[int]) -> int:
    chosen = [metadata.row_group(group) for group in groups]
    rows = sum(group.num_rows for group in chosen)
    size = sum(group.total_byte_size for group in chosen)
    return max(1, min(_MOST_ROWS, _BATCH_BYTES * rows // max(size, 1)))


def _row_groups(name: str) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with _open(name) as source:
            return max(1, pq.ParquetFile(source).num_row_groups)
    except (pa.ArrowException, OSError, errors.ArcflowError):
        return 1  # the task that gets it says what is wrong, if it is wrong there too


def rows_of(reader: Reader | None, batch: Any) -> Iterable[Any]:
    """Return the rows that what a task got stands for: itself, where no reader makes them of it."""
    return (batch,) if reader is None else reader.rows(batch)


def _open(uri: str) -> Any:
    import pyarrow as pa
    from pyarrow import fs

    parsed = urllib.parse.urlsplit(uri)
    if parsed.scheme in ("", "file"):
        return pa.memory_map(urllib.parse.unquote(parsed.path))
    if files.is_hdfs(uri):
        return pa.PythonFile(_HdfsFile(urllib.parse.unquote(uri)), mode="r")
    system, path = fs.FileSystem.from_uri(uri)
    return system.open_input_file(path)


class _HdfsFile:
    """What pyarrow wants of a file, over our own client."""

    closed = False

    def __init__(self, uri: str) -> None:
        from . import _core

        self._file: Any = _core.HdfsFile(uri)
        self._at = 0

    def read(self, size: int = -1) -> bytes:
        size = self._file.size - self._at if size is None or size < 0 else size
        found = self._file.read(self._at, max(0, min(size, self._file.size - self._at)))
        self._at += len(found)
        return bytes(found)

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._file.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def size(self) -> int:
        return int(self._file.size)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.closed = True
        self._file = None
