# SPDX-License-Identifier: Apache-2.0
"""Spark's own daemon, which forks a worker for each task, with what workers import already there.

Half of the processor time of a test's workers was the import of pandas and pyarrow. Set by
``spark.python.daemon.module``; tests of `arcflow submit`, YARN and examples use Spark's as it is.
"""

import pandas  # noqa: F401
import pyarrow  # noqa: F401
from pyspark.daemon import manager

if __name__ == "__main__":
    manager()
