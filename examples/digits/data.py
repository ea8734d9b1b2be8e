# SPDX-License-Identifier: Apache-2.0
"""The demo's data: scikit-learn's handwritten digits as Parquet, then prepared with Spark SQL."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

PREPARE = """
SELECT
  id,
  transform(pixels, p -> CAST(p / 16.0 AS FLOAT)) AS image,   -- 64 grey levels, 0 to 1
  CAST(digit AS BIGINT) AS label,
  CASE WHEN pmod(xxhash64(id), 10) < 7 THEN 'train'           -- the same split in every run
       WHEN pmod(xxhash64(id), 10) < 8 THEN 'validation'
       ELSE 'test' END AS part
FROM digits
"""


def write_parquet(path: Path) -> int:
    """Write the 1,797 images of 8 x 8 pixels as they come, one row an image; return how many."""
    import pyarrow as pa
    import pyarrow.parquet as pq
    from sklearn.datasets import load_digits

    bunch = load_digits()
    table = pa.table(
        {
            "id": pa.array(range(len(bunch.target)), pa.int64()),
            "pixels": pa.array(list(bunch.data.astype("int16")), pa.list_(pa.int16())),
            "digit": pa.array(bunch.target, pa.int32()),
        }
    )
    path.mkdir(parents=True, exist_ok=True)
    for part in range(4):  # several files, as a real table has
        pq.write_table(
            table.filter(pa.compute.equal(pa.compute.bit_wise_and(table["id"], 3), part)),
            path / f"part-{part}.parquet",
        )
    return table.num_rows


def prepare(spark: SparkSession, path: Path) -> dict[str, DataFrame]:
    """Normalise the pixels, make one array column of them, and split the rows in three."""
    spark.read.parquet(str(path)).createOrReplaceTempView("digits")
    prepared = spark.sql(PREPARE).cache()
    return {
        part: prepared.where(f"part = '{part}'").drop("part")
        for part in ("train", "validation", "test")
    }
