# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a Keras network learns handwritten digits on two Spark executors, and Spark applies it."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import data  # noqa: E402
import pictures  # noqa: E402

import arcflow  # noqa: E402
from standalone import StandaloneCluster  # noqa: E402

WANTED_ACCURACY = 0.95


def make_model():
    import keras

    model = keras.Sequential(
        [
            keras.Input((64,)),
            keras.layers.Reshape((8, 8, 1)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def train(ctx):  # runs in every node, in its own process
    with ctx.strategy().scope():
        model = make_model()
    history = model.fit(
        ctx.dataset("train", batch_size=32),
        epochs=ctx.args["epochs"],
        validation_data=ctx.dataset("validation", batch_size=32),
        verbose=0,
    )
    ctx.save(model, ctx.args["model_dir"])  # chief writes, atomically; all return together
    return history.history


def confusion_table(rows) -> str:
    """Lines: what the image shows; columns: what the model read."""
    counts = {(row["label"], row["predicted"]): row["count"] for row in rows}
    lines = ["read as" + "".join(f"{digit:4d}" for digit in range(10))]
    for digit in range(10):
        cells = "".join(f"{counts.get((digit, read), 0) or '.':>4}" for read in range(10))
        lines.append(f"a {digit}    {cells}")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/demo"))
    parser.add_argument("--epochs", type=int, default=30)
    options = parser.parse_args()
    output = options.output.resolve()
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    started = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - started:5.1f} s] {text}", flush=True)

    images = data.write_parquet(output / "digits")
    say(f"{images} images of handwritten digits written as Parquet")
    with StandaloneCluster(output / "cluster") as machines:
        say(f"Spark standalone cluster is up: {machines.url}, two Workers")
        spark = machines.session("arcflow-digits")
        try:
            parts = data.prepare(spark, output / "digits")
            say(
                "prepared with Spark SQL: "
                + ", ".join(f"{n} {p.count()} rows" for n, p in parts.items())
            )

            with arcflow.Cluster(spark, size=2) as cluster:
                result = cluster.run(
                    train,
                    data={
                        name: parts[name].select("image", "label")
                        for name in ("train", "validation")
                    },
                    args={"epochs": options.epochs, "model_dir": str(output / "model")},
                )
            history = result.values[0]
            say(f"trained on two executors: validation accuracy {history['val_accuracy'][-1]:.3f}")

            accuracy = evaluate(parts["test"], output)
            pictures.learning_curve(history, output / "learning_curve.png")
            say(
                f"output is in {os.path.relpath(output)}: learning_curve.png, misread.png, model/, predictions/"
            )
        finally:
            spark.stop()
    if accuracy < WANTED_ACCURACY:
        print(f"accuracy {accuracy:.3f} is below {WANTED_ACCURACY}", file=sys.stderr)
        return 1
    return 0


def evaluate(test, output: Path) -> float:
    """Apply the model with Spark; print accuracy and confusion table, keep predictions and misread digits."""
    from pyspark.sql import functions

    scores = arcflow.apply(str(output / "model"), test)
    (new,) = set(scores.columns) - set(test.columns)
    best = functions.expr(f"CAST(array_position({new}, array_max({new})) - 1 AS INT)")
    predictions = scores.withColumn("predicted", best).drop(new).cache()
    predictions.write.mode("overwrite").parquet(str(output / "predictions"))

    rows = predictions.groupBy("label", "predicted").count().collect()
    total = sum(row["count"] for row in rows)
    right = sum(row["count"] for row in rows if row["label"] == row["predicted"])
    print(f"\n{right} of {total} test digits are read correctly: accuracy {right / total:.3f}\n")
    print(confusion_table(rows), end="\n\n")
    wrong = predictions.where("label != predicted").orderBy("label", "id").collect()
    pictures.misread_page([row.asDict() for row in wrong], output / "misread.png")
    return right / total


if __name__ == "__main__":
    sys.exit(main())
