# SPDX-License-Identifier: Apache-2.0
"""`arcflow submit`: the `spark-submit` line for a program, printed and run."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import FailedPreconditionError, InvalidArgumentError

USAGE = """\
arcflow submit SCRIPT.py [--print] [--pack[=FILE]] [spark-submit options] [-- arguments of the script]

Prints and runs the spark-submit line of pyspark's installation (or of SPARK_HOME).

  --print        only print the line
  --pack         ship this virtual environment to the executors (venv-pack); it is packed into a
                 temporary file, or into FILE, which is taken as it is when it exists
  --pack=FILE

All other options are spark-submit's: --master, --deploy-mode, --conf, --num-executors, …
"""
# Where executors unpack the environment; the name behind # of --archives.
ENVIRONMENT = "environment"


@dataclasses.dataclass
class Request:
    """What the user typed."""

    script: str
    spark: list[str] = dataclasses.field(default_factory=list)
    args: list[str] = dataclasses.field(default_factory=list)
    pack: str | None = None  # "" for a temporary file
    only_print: bool = False


def parse(argv: Sequence[str]) -> Request:
    """Take the command line apart.

    Raises
    ------
    InvalidArgumentError
        The first word is no script, or an option of ours is no such.
    """
    words = list(argv)
    if not words or words[0].startswith("-"):
        raise InvalidArgumentError(
            "the script comes first: arcflow submit script.py --master … -- --epochs 3"
        )
    split = words.index("--") if "--" in words else len(words)
    request = Request(words[0], args=words[split + 1 :])
    if not Path(request.script).exists() and "://" not in request.script:
        raise InvalidArgumentError(f"there is no script {request.script}")
    for word in words[1:split]:
        if word == "--print":
            request.only_print = True
        elif word == "--pack" or word.startswith("--pack="):
            request.pack = word.partition("=")[2]
        else:
            request.spark.append(word)
    return request


def find_spark_submit(environ: Mapping[str, str] = os.environ) -> str:
    """Return the path of `spark-submit`: of ``SPARK_HOME``, else of the installed pyspark.

    Raises
    ------
    FailedPreconditionError
        There is none.
    """
    home = environ.get("SPARK_HOME")
    if home:
        path = Path(home, "bin", "spark-submit")
        if path.exists():
            return str(path)
        raise FailedPreconditionError(
            f"SPARK_HOME={home} has no bin/spark-submit: correct it, or unset it to use pyspark's own"
        )
    import importlib.util

    found = importlib.util.find_spec("pyspark")
    if found is not None and found.origin:
        path = Path(found.origin).parent / "bin" / "spark-submit"
        if path.exists():
            return str(path)
    raise FailedPreconditionError(
        "no spark-submit: pip install 'arcflow[spark]', or set SPARK_HOME to a Spark installation"
    )


def line(
    request: Request, submit: str, archive: str | None, environ: Mapping[str, str] = os.environ
) -> tuple[list[str], dict[str, str]]:
    """Return the command, and what is added to its environment.

    Parameters
    ----------
    request
        What the user typed.
    submit
        Path of `spark-submit`.
    archive
        The packed environment, if there is one.
    environ
        Of this process: ``PYSPARK_PYTHON`` and ``PYSPARK_DRIVER_PYTHON`` that are there stay.
    """
    command = [submit, *request.spark]
    added: dict[str, str] = {}
    in_cluster = "cluster" in (_value(request.spark, "--deploy-mode") or "")
    if archive is not None:
        given = _value(request.spark, "--archives")
        if given is not None:
            raise InvalidArgumentError(
                f"--pack and --archives {given}: ship your own archive without --pack, or leave it out"
            )
        python = f"./{ENVIRONMENT}/bin/python"
        command += [
            "--archives",
            f"{archive}#{ENVIRONMENT}",
            "--conf",
            f"spark.pyspark.python={python}",
        ]
        if in_cluster:
            command += ["--conf", f"spark.yarn.appMasterEnv.PYSPARK_PYTHON={python}"]
        # Without it the driver would run the executors' Python, whatever the environment says.
        driver = python if in_cluster else environ.get("PYSPARK_DRIVER_PYTHON", sys.executable)
        command += ["--conf", f"spark.pyspark.driver.python={driver}"]
    elif "PYSPARK_PYTHON" not in environ and not in_cluster:
        added["PYSPARK_PYTHON"] = sys.executable
    if archive is None and not in_cluster and "PYSPARK_DRIVER_PYTHON" not in environ:
        added["PYSPARK_DRIVER_PYTHON"] = sys.executable
    return [*command, request.script, *request.args], added


def _value(options: Sequence[str], name: str) -> str | None:
    """Return what an option of spark-submit is set to, in either way of writing it."""
    found = None
    for number, word in enumerate(options):
        if word == name and number + 1 < len(options):
            found = options[number + 1]
        elif word.startswith(f"{name}="):
            found = word.partition("=")[2]
    return found


def pack(target: Path) -> None:
    """Write this virtual environment to `target` (``*.tar.gz``), which must not exist.

    Raises
    ------
    FailedPreconditionError
        This Python is in no virtual environment, or venv-pack is not there or cannot pack it.
    """
    if sys.prefix == sys.base_prefix:
        raise FailedPreconditionError(
            f"--pack ships a virtual environment, and {sys.executable} is in none: make one with "
            "python -m venv, install arcflow there and call its arcflow; conda environments are "
            "packed by conda-pack and go in with --archives env.tar.gz#environment"
        )
    try:
        import venv_pack
    except ImportError:
        raise FailedPreconditionError(
            "--pack needs venv-pack: pip install venv-pack (or pack in another way, and say "
            f"--archives env.tar.gz#{ENVIRONMENT} --conf spark.pyspark.python=./{ENVIRONMENT}/bin/python)"
        ) from None
    try:
        venv_pack.pack(prefix=sys.prefix, output=str(target), format="tar.gz", verbose=False)
    except (venv_pack.VenvPackException, OSError) as error:
        raise FailedPreconditionError(f"venv-pack cannot pack {sys.prefix}: {error}") from error


def main(argv: Sequence[str]) -> int:
    """Print the line and run it; return its exit status."""
    if any(word in ("-h", "--help") for word in argv[:1]):
        print(USAGE)
        return 0
    request = parse(argv)
    submit = find_spark_submit()
    with tempfile.TemporaryDirectory(prefix="arcflow-submit-") as folder:
        archive = None
        if request.pack is not None:
            archive = Path(request.pack or Path(folder, "environment.tar.gz")).absolute()
            if not archive.exists() and not request.only_print:
                print(f"arcflow submit: packing {sys.prefix} …", file=sys.stderr, flush=True)
                pack(archive)
        command, added = line(request, submit, None if archive is None else str(archive))
        shown = [f"{name}={shlex.quote(value)}" for name, value in added.items()]
        print(" ".join([*shown, shlex.join(command)]), flush=True)
        if request.only_print:
            return 0
        return _run(command, {**os.environ, **added})


def _run(command: list[str], environ: dict[str, str]) -> int:
    """Run a command to its end; Ctrl-C reaches it too, and it is waited for."""
    with subprocess.Popen(command, env=environ) as process:
        while True:
            try:
                return process.wait()
            except KeyboardInterrupt:
                continue  # the terminal has sent it to spark-submit as well, which ends its job
