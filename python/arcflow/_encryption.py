# SPDX-License-Identifier: Apache-2.0
"""Whether control connections are encrypted: as the user says, else as Spark encrypts its own."""

from __future__ import annotations

from typing import Any

# Spark's switches for its own connections between hosts; one that is on is a wish for ours too.
_SPARK_SWITCHES = (
    "spark.network.crypto.enabled",
    "spark.ssl.enabled",
    "spark.ssl.rpc.enabled",
    "spark.authenticate.enableSaslEncryption",
)


def wanted(spark: Any, encrypt: bool | None) -> bool:
    """Return `encrypt`, or for None whether Spark encrypts its own connections between hosts."""
    if encrypt is not None:
        return bool(encrypt)
    return any(_setting(spark, name) == "true" for name in _SPARK_SWITCHES)


def _setting(spark: Any, name: str) -> str:
    """Return a setting of the application; Classic and Connect. Empty when it is not set."""
    try:
        return str(spark.conf.get(name, "")).lower()
    except Exception:  # a server that does not tell this setting
        return ""
