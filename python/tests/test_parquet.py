# SPDX-License-Identifier: Apache-2.0
"""Parquet files that the tasks read themselves: the rows that Spark reads, each once, or an error naming the file."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from spark_testing import marks

from arcflow import Cluster, Feed, ParquetFeed, errors
from arcflow.parquet import Reader

pytestmark = [pytest.mark.usefixtures("leftovers"), *marks("local")]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests

ROWS = 3000
COLUMNS = (
    "id",
    "array(float(id), float(-id), 0.5f) as x",
    "concat('row ', id) as t",
    "cast(id as decimal(12, 2)) as price",
    "timestamp_micros(id * 1000001) as at",
    "named_struct('a', int(id), 'b', array(double(id), double(id))) as s",
    "if(id % 3 = 0, null, cast(id % 100 as short)) as n",
)


@pytest.fixture(scope="module")
def folder(spark, tmp_path_factory):
    """Three files of ten row groups."""
    path = str(tmp_path_factory.mktemp("parquet") / "rows")
    rows = spark.range(0, ROWS, 1, 3).selectExpr(*COLUMNS)
    rows.write.option("parquet.block.row.count.limit", 100).parquet(path)
    return path


def node_rows(ctx):
    seen = {}
    for columns, padding in ctx.reader("train", 50, remainder="partial"):
        count = len(columns["id"]) - padding
        fields = {f"s.{name}": values for name, values in columns.pop("s", {}).items()}
        for name, values in (columns | fields).items():
            seen.setdefault(name, []).append(np.asarray(values)[:count])
    return {name: np.concatenate(parts) for name, parts in seen.items()}


def in_order(result):
    """Columns of all nodes together, by id."""
    parts = [value for value in result.values if value]
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    order = np.argsort(whole["id"])
    return {name: values[order] for name, values in whole.items()}


OPTIONS = {"fill": {"n": -1}, "cast": {"price": "scaled"}}


def test_rows_are_those_of_spark_and_each_comes_once(spark, folder):
    with Cluster(spark, size=4, progress=False) as cluster:
        by_spark = cluster.run(node_rows, data=Feed(spark.read.parquet(folder), **OPTIONS))
        directly = cluster.run(node_rows, data=ParquetFeed(spark, folder, **OPTIONS))
    assert directly.rows["train"]["fed"] == ROWS
    fed = [node["fed"] - node["taken"] + node["given"] for node in directly.rows["train"]["nodes"]]
    assert min(fed) > ROWS / 8, "row groups are shared out evenly"
    wanted, found = in_order(by_spark), in_order(directly)
    assert found["id"].tolist() == list(range(ROWS))
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert found[name].dtype == wanted[name].dtype
        np.testing.assert_array_equal(found[name], wanted[name], name)


def test_files_and_a_frame_are_fed_side_by_side(spark, folder):
    def both(ctx):
        ids = {}
        for name in ("train", "more"):
            ids[name] = []
            for columns, padding in ctx.reader(name, 50, remainder="partial"):
                ids[name] += columns["id"][: len(columns["id"]) - padding].tolist()
        return ids

    data = {
        "train": ParquetFeed(spark, folder, columns=["id", "x"]),
        "more": spark.range(0, 100, 1, 3),
    }
    with Cluster(spark, size=2, progress=False, max_restarts=1) as cluster:
        values = cluster.run(both, data=data).values
    assert sorted(i for value in values for i in value["train"]) == list(range(ROWS))
    assert sorted(i for value in values for i in value["more"]) == list(range(100))


def test_nodes_that_live_on_are_fed_from_files(spark, folder):
    with Cluster(spark, size=2, progress=False) as cluster:
        cluster.start(node_rows)
        for _ in range(2):
            assert cluster.feed(ParquetFeed(spark, folder, columns=["id", "x"])).rows == ROWS
        with pytest.raises(errors.InvalidArgumentError, match=r"give spark\.read\.parquet"):
            cluster.infer(ParquetFeed(spark, folder, columns=["id"]), "id bigint")
        found = in_order(cluster.stop())
    assert found["id"].tolist() == [i for i in range(ROWS) for _ in range(2)]
    np.testing.assert_array_equal(found["x"][:, 1], -found["id"].astype("float32"))


def test_what_is_not_in_the_files_is_refused(spark, folder, tmp_path):
    parted = str(tmp_path / "parted")
    spark.range(10).selectExpr("id", "id % 2 as day").write.partitionBy("day").parquet(parted)
    with pytest.raises(errors.InvalidArgumentError, match=r"\['day'\] are in the names of their"):
        ParquetFeed(spark, parted).plan("train")
    assert ParquetFeed(spark, parted, columns=["id"]).plan("train").inputs == [
        "file",
        "part",
        "parts",
    ]
    with pytest.raises(errors.InvalidArgumentError, match="takes no order_by="):
        ParquetFeed(spark, folder, order_by="id")


@pytest.mark.parametrize("harm", ["damaged", "other columns", "other types", "gone"])
def test_a_file_that_cannot_be_read_is_named(spark, tmp_path, harm):
    path = tmp_path / "rows"
    spark.range(0, 100, 1, 2).selectExpr("id", "float(id) as x").write.parquet(str(path))
    feed = ParquetFeed(spark, str(path), probe=False)  # Spark would meet it first
    victim = sorted(path.glob("*.parquet"))[1]
    if harm == "damaged":
        victim.write_bytes(victim.read_bytes()[:-200] + bytes(200))
    elif harm == "gone":
        victim.unlink()
    else:
        other = "id" if harm == "other columns" else "id, cast(id as string) || 'x' as x"
        one = spark.range(0, 10, 1, 1).selectExpr(*other.split(", "))
        one.write.parquet(str(tmp_path / "other"))
        next((tmp_path / "other").glob("*.parquet")).rename(victim)
    with (
        Cluster(spark, size=2, progress=False) as cluster,
        pytest.raises(errors.NodeFailedError, match=f"cannot read Parquet file .*{victim.name}"),
    ):
        cluster.run(lambda ctx: [c for c, _ in ctx.reader("train", 10)], data=feed)


def test_files_of_hdfs_are_read_by_our_client(spark, folder, web_hdfs):
    import pyarrow as pa

    names = []
    for file in sorted(Path(folder).glob("*.parquet")):
        (web_hdfs.root / file.name).write_bytes(file.read_bytes())
        names.append(f"{web_hdfs.url}/{file.name}")
    schema = pa.schema([("id", pa.int64()), ("at", pa.timestamp("us", "UTC"))])
    sut = Reader(("id", "at"), schema.serialize().to_pybytes())
    splits = [(name, part, 2) for name in names for part in range(2)]
    columns = [list(column) for column in zip(*splits, strict=True)]
    rows = [
        row
        for batch in sut.rows(pa.RecordBatch.from_arrays(list(map(pa.array, columns)), sut.inputs))
        for row in batch.to_pylist()
    ]
    assert sorted(row["id"] for row in rows) == list(range(ROWS))
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert all(
        row["at"] - epoch == datetime.timedelta(microseconds=row["id"] * 1000001) for row in rows
    )
