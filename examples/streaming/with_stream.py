# SPDX-License-Identifier: Apache-2.0
"""The regression in a node that lives on, fed by Structured Streaming with files as they arrive."""

import argparse

import keras
import streaming_data as data

import arcflow.cli


def make_model(learning_rate):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(learning_rate), "mse", metrics=["mae"])
    return model


def main(ctx, args):
    rows = ctx.dataset("train", args.batch_size, features="x", label="y", remainder="partial")
    model = make_model(args.learning_rate)
    model.fit(rows, verbose=0)
    ctx.save(model, args.model)
    return int(model.optimizer.iterations)


if __name__ == "__main__":
    parser = arcflow.cli.add_arguments(argparse.ArgumentParser())
    parser.add_argument("--rows", required=True, help="folder of files: x,x,x,x,y a line")
    parser.add_argument("--model", default="streaming.keras")
    parser.add_argument("--batch_size", type=int, default=10)
    parser.add_argument("--learning_rate", type=float, default=0.1)
    args = parser.parse_args()
    with arcflow.cli.cluster(None, args) as cluster:
        cluster.start(lambda ctx: main(ctx, args))
        cluster.feed_stream(data.stream(args.rows), trigger={"availableNow": True}).wait()
        print("rows", cluster.stop().rows["train"]["used"])
