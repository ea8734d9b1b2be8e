# SPDX-License-Identifier: Apache-2.0
"""`import arcflow` needs neither TensorFlow nor Spark, and says so when one is missing and used."""

from __future__ import annotations

import subprocess
import sys

import spark_testing

BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("tensorflow", "keras", "pyspark", "py4j"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", BLOCK + code],
        capture_output=True,
        text=True,
        timeout=120,
        env={"PYTHONPATH": spark_testing.SOURCE, "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_export_imports_without_tensorflow_and_spark():
    out = run(
        "import arcflow\n"
        "for name in arcflow.__all__: getattr(arcflow, name)\n"
        "print(arcflow.__version__, sorted(set(sys.modules) & {'tensorflow', 'keras', 'pyspark'}))"
    )
    assert out.endswith("[]")
    assert out.split()[0][0].isdigit()


def test_plain_import_loads_only_the_errors():
    out = run(
        "import arcflow\n"
        "print(sorted(m for m in sys.modules if m.startswith('arcflow')), 'numpy' in sys.modules)"
    )
    assert out == "['arcflow', 'arcflow.errors'] False"


def test_cluster_without_spark_says_what_to_install():
    out = run(
        "import arcflow\n"
        "try: arcflow.Cluster(size=2)\n"
        "except arcflow.errors.FailedPreconditionError as e: print(e)"
    )
    assert "PySpark cannot be imported" in out
    assert "pip install" in out


def test_unknown_name_is_an_attribute_error():
    assert run("import arcflow\nprint(hasattr(arcflow, 'no_such_name'))") == "False"


def test_doctor_of_the_machine_works_without_spark_and_tensorflow():
    out = run("import arcflow\nr = arcflow.doctor()\nprint(r)")
    assert "python" in out
