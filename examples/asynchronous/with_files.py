# SPDX-License-Identifier: Apache-2.0
"""The regression over parameter servers (or in step, without --num_ps_tasks), read from files."""

import argparse

import keras
import regression_data as data

import arcflow.cli


def make_model(learning_rate):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(learning_rate), "mse", metrics=["mae"])
    return model


def main(ctx, args):
    rows = lambda: data.share(ctx, args.rows, args.batch_size)  # noqa: E731 - on each worker
    with ctx.strategy().scope():
        model = make_model(args.learning_rate)
    options = {"epochs": args.epochs, "steps_per_epoch": args.steps}
    history = ctx.fit(model, rows, **options)
    ctx.save(model, args.model)
    return history["loss"]


if __name__ == "__main__":
    parser = arcflow.cli.add_arguments(argparse.ArgumentParser())
    parser.add_argument("--rows", help="pattern of files: x,x,x,x,y a line")
    parser.add_argument("--model", default="regression.keras")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=0.05)
    args = parser.parse_args()
    with arcflow.cli.cluster(None, args) as cluster:
        print("losses", cluster.run(lambda ctx: main(ctx, args)).values[0])
