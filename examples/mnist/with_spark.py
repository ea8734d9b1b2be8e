# SPDX-License-Identifier: Apache-2.0
"""MNIST on a Spark cluster: Spark reads and prepares the images, and feeds the nodes."""

import argparse

import keras
import mnist_data as data

import arcflow.cli


def make_model(learning_rate):
    model = keras.Sequential(
        [
            keras.Input((784,)),
            keras.layers.Reshape((28, 28, 1)),
            keras.layers.Conv2D(16, 3, strides=2, activation="relu"),
            keras.layers.Conv2D(32, 3, strides=2, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    optimizer = keras.optimizers.Adam(learning_rate)
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def main(ctx, args):
    with ctx.strategy().scope():
        model = make_model(args.learning_rate)
    rows = ctx.dataset("train", args.batch_size)
    history = model.fit(rows, epochs=args.epochs, verbose=0)
    ctx.save(model, args.model)
    return history.history["accuracy"][-1]


if __name__ == "__main__":
    parser = arcflow.cli.add_arguments(argparse.ArgumentParser())
    parser.add_argument("--images", help="folder of idx or CSV files; small digits by default")
    parser.add_argument("--model", default="mnist.keras")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=0.002)
    args = parser.parse_args()
    with arcflow.cli.cluster(None, args) as cluster:
        print("accuracy", cluster.run(lambda ctx: main(ctx, args), data=data.frame(args)).values[0])
