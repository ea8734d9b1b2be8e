# SPDX-License-Identifier: Apache-2.0
"""Prints "<folder>;<major>.<minor>" of the TensorFlow of this interpreter without importing it."""

import importlib.metadata
import importlib.util
import os
import sys

spec = importlib.util.find_spec("tensorflow")
if spec is None or not spec.origin:
    sys.exit("no tensorflow")
for name in importlib.metadata.packages_distributions().get("tensorflow", []):
    major, minor, *_ = importlib.metadata.version(name).split(".")
    print(f"{os.path.dirname(spec.origin)};{major}.{minor}", end="")
    break
else:
    sys.exit("no distribution provides tensorflow")
