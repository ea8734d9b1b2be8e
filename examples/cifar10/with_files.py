# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 on a Spark cluster: each node reads its share of the files, Spark is not in the way of data."""

import argparse

import cifar10_data as data
import keras

import arcflow.cli


def make_model(learning_rate):
    model = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
            keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
            keras.layers.MaxPooling2D(),
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
    options = {"batch_size": args.batch_size, "parse": data.parse}
    rows = ctx.read_files(data.files(args.images), format=data.records, **options)
    history = model.fit(rows, epochs=args.epochs, verbose=0)
    ctx.save(model, args.model)
    return history.history["accuracy"][-1]


if __name__ == "__main__":
    parser = arcflow.cli.add_arguments(argparse.ArgumentParser())
    parser.add_argument("--images", help="folder of data_batch*.bin; generated ones by default")
    parser.add_argument("--model", default="cifar10.keras")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=20)
    parser.add_argument("--learning_rate", type=float, default=0.002)
    args = parser.parse_args()
    with arcflow.cli.cluster(None, args) as cluster:
        print("accuracy", cluster.run(lambda ctx: main(ctx, args)).values[0])
