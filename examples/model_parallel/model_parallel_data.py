# SPDX-License-Identifier: Apache-2.0
"""Data of these examples: scikit-learn's handwritten digits, and ratings that are generated."""

from __future__ import annotations

SIDE, CLASSES = 8, 10


def digits(count: int = 1797):
    """Return pictures ``[count, 64]`` between 0 and 1, and their digits ``[count]``; real data."""
    from sklearn.datasets import load_digits

    found = load_digits()
    return (found.data[:count] / 16).astype("float32"), found.target[:count].astype("int64")


def digits_frame(count: int = 1797):
    """Return the same as a DataFrame of ``x`` and ``y``."""
    from pyspark.sql import SparkSession

    x, y = digits(count)
    rows = [(a.tolist(), int(b)) for a, b in zip(x, y, strict=True)]
    return SparkSession.active().createDataFrame(rows, "x array<float>, y bigint")


def ratings(users: int, items: int, count: int, seed: int = 5):
    """Return generated ratings: users ``[count]``, items ``[count]``, ratings ``[count]``.

    Tastes have three hidden dimensions, so that a factorization can find them.
    """
    import numpy as np

    chance = np.random.default_rng(seed)
    taste, kind = chance.normal(size=(users, 3)), chance.normal(size=(items, 3))
    who, what = chance.integers(0, users, count), chance.integers(0, items, count)
    rated = (taste[who] * kind[what]).sum(axis=1) + chance.normal(scale=0.1, size=count)
    return who.astype("int64"), what.astype("int64"), rated.astype("float32")
