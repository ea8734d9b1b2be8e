# SPDX-License-Identifier: Apache-2.0
"""A class-data archive for the Java processes of tests: with it, they start in half the processor time.

Source: JDK's "dynamic application class-data sharing" (JEP 350). The classes that a small Spark application loads are
written to a file when it ends; later Java processes with the same class path map them instead of reading, checking and
linking them anew. Java goes on without the archive where it does not fit (another JDK, other jars).

`python python/tests/spark_class_archive.py` writes it (about 20 s, 160 MB) if there is none for the installed Spark and
Java; `spark_testing.prepare_environment` uses what is there.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "build"
# The same garbage collector and compiler as processes that use the archive.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


def archive() -> Path:
    """Where the archive for the installed Spark and Java is, or would be."""
    import pyspark

    home = Path(pyspark.__file__).parent
    java = subprocess.run(
        ["java", "-version"], env=_environment(), capture_output=True, check=True
    ).stderr
    parts = [str(home).encode(), java]
    for jar in sorted((home / "jars").iterdir()):
        found = jar.stat()
        parts.append(f"{jar.name} {found.st_size} {found.st_mtime_ns}".encode())
    return FOLDER / f"spark-classes-{hashlib.sha256(b'|'.join(parts)).hexdigest()[:16]}.jsa"


def java_options() -> str:
    """Options for every Java process of the tests, the archive among them if it was made."""
    try:
        path = archive()
    except (OSError, subprocess.SubprocessError):  # no Java on the path
        return JAVA_OPTIONS
    if not path.exists():
        return JAVA_OPTIONS
    # Where it does not fit, Java says so on standard output, which others read.
    return f"{JAVA_OPTIONS} -XX:SharedArchiveFile={path} -Xlog:disable"


def _environment() -> dict[str, str]:
    """Without options that Java would take from it, and tell of."""
    return {
        k: v for k, v in os.environ.items() if k not in ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS")
    }


def make() -> None:
    import pyspark

    path = archive()
    if path.exists():
        return
    print("== archive of Spark's classes, for tests to start faster (about 20 s)")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "made.jsa"
        subprocess.run(
            [
                str(Path(pyspark.__file__).parent / "bin" / "spark-submit"),
                *("--master", "local[2]", "--driver-memory", "512m"),
                *("--conf", "spark.ui.enabled=false", "--conf", "spark.driver.host=127.0.0.1"),
                *("--driver-java-options", f"{JAVA_OPTIONS} -XX:ArchiveClassesAtExit={made}"),
                str(Path(__file__).resolve()),
                "application",
                folder,
            ],
            env=_environment() | {"PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
        if not made.exists():  # only time is lost
            print("Java wrote no archive; tests start without one")
            return
        partial = path.with_suffix(f".{os.getpid()}")
        partial.write_bytes(made.read_bytes())
        partial.rename(path)


def application(folder: str) -> None:
    """What tests' sessions do most: ranges, SQL, Parquet, Arrow to Python and back, a barrier job."""
    from pyspark.sql import SparkSession

    spark = SparkSession.builder.getOrCreate()
    rows = spark.range(0, 100, 1, 4).selectExpr("id", "cast(id as float) x", "array(id) a")
    rows.write.parquet(f"{folder}/rows")
    rows = spark.read.parquet(f"{folder}/rows").repartition(2)
    rows.createOrReplaceTempView("rows")
    spark.sql("select sum(x) from rows group by id % 3").collect()
    rows.mapInArrow(lambda batches: batches, rows.schema, barrier=True).toArrow()
    spark.createDataFrame([(1, "a")], "id int, name string").collect()
    spark.stop()


if __name__ == "__main__":
    if sys.argv[1:2] == ["application"]:
        application(sys.argv[2])
    else:
        make()
