# SPDX-License-Identifier: Apache-2.0
"""What stands for a null: a value of the column's type, as the JSON of a feed's schema holds it."""

from __future__ import annotations

import datetime
import math
from typing import Any

import numpy as np

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def default(dtype: str) -> Any:
    """Return what lies under a mask when nothing was said: zero, or no bytes."""
    if dtype == "string":
        return ""
    if dtype == "bool":
        return False
    return 0.0 if dtype.startswith("float") else 0


def to_json(value: Any, dtype: str) -> Any:
    """Return the JSON form of a fill.

    Parameters
    ----------
    value
        As the user gave it; dates and times are taken for columns of them.
    dtype
        Of the column: NumPy's name, or ``"string"``.

    Raises
    ------
    ValueError
        The value does not fit the type; the text goes on after "fill= ".
    """
    if isinstance(value, np.generic):
        value = value.item()
    wrong = ValueError(f"{value!r}, which is no {dtype}")
    if dtype == "string":
        if isinstance(value, bytes):
            try:
                return value.decode()
            except UnicodeDecodeError:
                raise ValueError(f"{value!r}, which is not UTF-8") from None
        if isinstance(value, str):
            return value
        raise wrong
    if dtype == "bool":
        if isinstance(value, bool):
            return value
        raise wrong
    if isinstance(value, datetime.datetime):
        utc = value.replace(tzinfo=datetime.UTC) if value.tzinfo is None else value
        value = (utc - _EPOCH) // datetime.timedelta(microseconds=1)
    elif isinstance(value, datetime.date):
        value = (value - _EPOCH.date()).days
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong
    if dtype.startswith("float"):
        number = float(value)
        if math.isfinite(number):
            return number
        return "nan" if math.isnan(number) else ("inf" if number > 0 else "-inf")
    limits = np.iinfo(dtype)
    if value != int(value) or not limits.min <= value <= limits.max:
        raise wrong
    return int(value)
