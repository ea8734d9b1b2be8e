# SPDX-License-Identifier: Apache-2.0
"""Examples: run as their README says, on small data, and differ from their originals in few lines."""

from __future__ import annotations

import ast
import difflib
import gzip
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PROGRAMS = sorted(path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.glob("*/with_*.py"))
# What takes minutes; `make examples` runs it too.
# The announcement promised fewer than this.
TEN = 10


def code_lines(path: Path) -> list[str]:
    """Lines of code without indentation, since a `with` above a line is no change of it; no docstring."""
    text = path.read_text()
    docstring = ast.parse(text).body[0]
    lines = text.splitlines()
    kept = lines[: docstring.lineno - 1] + lines[docstring.end_lineno :]
    return [line.strip() for line in kept if line.strip()]


def changed_lines(before: list[str], after: list[str]) -> int:
    """Lines that are new or other than before."""
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    return sum(
        max(i2 - i1, j2 - j1) for tag, i1, i2, j1, j2 in matcher.get_opcodes() if tag != "equal"
    )


def test_the_count_of_changed_lines_counts():
    assert changed_lines(["a", "b", "c"], ["a", "b", "c"]) == 0
    assert changed_lines(["a", "b", "c"], ["a", "x", "c", "d"]) == 2
    assert changed_lines(["a", "b", "c"], ["a"]) == 2


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_differs_from_its_original_in_fewer_than_ten_lines(program):
    path = EXAMPLES / program
    changed = changed_lines(code_lines(path.parent / "original.py"), code_lines(path))
    assert 0 < changed < TEN, f"{changed} lines"


@pytest.mark.parametrize("folder", sorted({Path(one).parent.as_posix() for one in PROGRAMS}))
def test_the_readme_has_the_submit_line_of_each_program(folder):
    text = (EXAMPLES / folder / "README.md").read_text()
    for program in (EXAMPLES / folder).glob("with_*.py"):
        assert re.search(rf"spark-submit .*{program.name}", text.replace("\\\n", " ")), program.name
        assert f"arcflow submit {program.name}" in text or f"/{program.name}" in text


def submitted(program: str, *arguments: str, cores: int = 2) -> str:
    path = EXAMPLES / program
    modules = [str(one) for one in path.parent.glob("*_data.py")]
    done = subprocess.run(
        [
            sys.executable, "-m", "arcflow", "submit", str(path), "--master", f"local[{cores}]",
            "--py-files", ",".join(modules), "--driver-memory", "700m",
            "--conf", "spark.ui.enabled=false", "--conf", "spark.log.level=ERROR",
            "--", "--no_progress", "--start_timeout", "300", *arguments,
        ],
        capture_output=True, text=True, timeout=550, check=False, env={**os.environ},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return done.stdout


def told(output: str, name: str) -> list[float]:
    (line,) = [one for one in output.splitlines() if one.startswith(f"{name} ")]
    return [float(one) for one in re.findall(r"\d+\.\d+(?:e-?\d+)?", line)]


@pytest.fixture
def digits(tmp_path):
    """scikit-learn's digits as CSV, as there is no MNIST here."""
    sys.path.insert(0, str(EXAMPLES / "mnist"))
    import mnist_data

    yield mnist_data.write_digits(tmp_path / "digits", 800)
    sys.path.remove(str(EXAMPLES / "mnist"))


def write_idx(folder: Path, csv: Path, compress: bool) -> None:
    """Write what is in a CSV file as a pair of idx files."""
    rows = [list(map(int, line.split(","))) for line in csv.read_text().splitlines()]
    end, opener = (".gz", gzip.open) if compress else ("", open)
    with opener(folder / f"train-images-idx3-ubyte{end}", "wb") as file:
        file.write(struct.pack(">4i", 2051, len(rows), 28, 28))
        file.write(bytes(value for row in rows for value in row[1:]))
    with opener(folder / f"train-labels-idx1-ubyte{end}", "wb") as file:
        file.write(struct.pack(">2i", 2049, len(rows)) + bytes(row[0] for row in rows))


@pytest.mark.tf
@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(600)
class TestMnist:
    def test_fed_by_spark_from_csv_on_two_nodes(self, digits, tmp_path):
        model = tmp_path / "m.keras"
        output = submitted(
            "mnist/with_spark.py", "--cluster_size", "2", "--images", digits,
            "--model", str(model), "--epochs", "3", "--batch_size", "16",
        )  # fmt: skip
        assert told(output, "accuracy")[0] > 0.5
        assert model.exists()

    def test_idx_files_and_csv_give_the_same_records(self, digits, tmp_path):
        import mnist_data
        import numpy as np

        csv = sorted(Path(digits).glob("*.csv"))[0]
        plain = [(x.numpy(), int(y)) for x, y in mnist_data.records(str(csv))]
        for compress in (False, True):
            folder = tmp_path / f"idx-{compress}"
            folder.mkdir()
            write_idx(folder, csv, compress)
            (found,) = mnist_data.files(str(folder))
            again = [(x.numpy(), int(y)) for x, y in mnist_data.records(found)]
            assert [y for _, y in again] == [y for _, y in plain]
            assert np.array_equal([x for x, _ in again], [x for x, _ in plain])
            rows = list(mnist_data._rows_of_idx(found))
            assert [y for _, y in rows] == [y for _, y in plain]
            assert np.allclose([x for x, _ in rows], [x for x, _ in plain])

    @pytest.mark.long
    def test_read_from_idx_files(self, digits, tmp_path):
        write_idx(tmp_path, sorted(Path(digits).glob("*.csv"))[0], compress=True)
        output = submitted(
            "mnist/with_files.py", "--cluster_size", "1", "--images", str(tmp_path),
            "--model", str(tmp_path / "m.keras"), "--epochs", "3", "--batch_size", "16", cores=1,
        )  # fmt: skip
        assert told(output, "accuracy")[0] > 0.5


@pytest.mark.tf
@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(600)
class TestCifar10:
    """On generated pictures, which are no CIFAR-10: their colours tell their labels."""

    @pytest.fixture
    def pictures(self, tmp_path):
        sys.path.insert(0, str(EXAMPLES / "cifar10"))
        import cifar10_data

        yield cifar10_data.write_generated(tmp_path / "generated")
        sys.path.remove(str(EXAMPLES / "cifar10"))

    @pytest.mark.long
    @pytest.mark.parametrize("program", ["with_spark.py", "with_files.py"])
    def test_learns_generated_pictures(self, pictures, tmp_path, program):
        output = submitted(
            f"cifar10/{program}", "--cluster_size", "1", "--images", pictures,
            "--model", str(tmp_path / "m.keras"), "--epochs", "4", cores=1,
        )  # fmt: skip
        assert told(output, "accuracy")[0] > 0.5


@pytest.mark.tf
@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(600)
class TestAsynchronous:
    @pytest.fixture
    def regression(self):
        sys.path.insert(0, str(EXAMPLES / "asynchronous"))
        import regression_data

        yield regression_data
        sys.path.remove(str(EXAMPLES / "asynchronous"))

    @pytest.mark.long
    def test_over_parameter_servers_fed_by_spark(self, regression, tmp_path):
        model = tmp_path / "m.keras"
        output = submitted(
            "asynchronous/with_spark.py", "--cluster_size", "4", "--num_ps_tasks", "1",
            "--epochs", "4", "--steps", "40", "--model", str(model), cores=4,
        )  # fmt: skip
        losses = told(output, "losses")
        assert len(losses) == 4
        # How stale gradients are depends on the machine, and so how far each epoch comes, the first
        # included: measured against the loss of the best constant, which is what learns nothing.
        assert losses[-1] < 0.3 * regression.arrays()[1].var()
        assert model.exists()

    @pytest.mark.long
    def test_the_same_program_in_step_read_from_files(self, regression, tmp_path):
        rows = regression.write(str(tmp_path / "rows"))
        output = submitted(
            "asynchronous/with_files.py", "--cluster_size", "1", "--rows", rows, "--epochs", "3",
            "--steps", "40", "--model", str(tmp_path / "m.keras"), cores=1,
        )  # fmt: skip
        losses = told(output, "losses")
        assert losses[-1] < losses[0] / 2


@pytest.mark.long
@pytest.mark.tf
@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_lives_on_learns_from_a_stream(tmp_path):
    sys.path.insert(0, str(EXAMPLES / "streaming"))
    import streaming_data

    sys.path.remove(str(EXAMPLES / "streaming"))
    rows = streaming_data.write(str(tmp_path / "incoming"))
    model = tmp_path / "m.keras"
    output = submitted(
        "streaming/with_stream.py", "--cluster_size", "1", "--rows", rows, "--model", str(model),
    )  # fmt: skip
    assert f"rows {8 * streaming_data.FILE_ROWS}" in output.splitlines()  # each once
    import keras

    found = keras.models.load_model(model).evaluate(streaming_data.read(rows, 100), verbose=0)
    assert found[0] < 0.2  # 0.8 untrained


@pytest.mark.long
@pytest.mark.tf
@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("program", "network", "side"),
    [("with_files.py", "inception_v3", 75), ("with_spark.py", "vgg19", 32)],
)
def test_a_network_of_keras_applications_trains_from_jpeg_files(tmp_path, program, network, side):
    sys.path.insert(0, str(EXAMPLES / "imagenet"))
    import imagenet_data

    sys.path.remove(str(EXAMPLES / "imagenet"))
    pictures = imagenet_data.write_generated(tmp_path / "pictures")
    model = tmp_path / "m.keras"
    output = submitted(
        f"imagenet/{program}", "--cluster_size", "1", "--images", pictures, "--architecture", network,
        "--side", str(side), "--batch_size", "4", "--learning_rate", "0.001", "--model", str(model),
        cores=1,
    )  # fmt: skip
    assert len(told(output, "losses")) == 1
    import keras

    again = keras.models.load_model(model)
    assert again.input_shape == (None, side, side, 3)
    assert again.output_shape == (None, 2)
