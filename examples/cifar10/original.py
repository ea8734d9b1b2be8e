# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 on one machine: a small network learns pictures. The two other programs are made from this one."""

import argparse

import cifar10_data as data
import keras
import tensorflow as tf


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


def main(args):
    model = make_model(args.learning_rate)
    files = tf.data.Dataset.from_tensor_slices(data.files(args.images))
    rows = files.interleave(data.records).batch(args.batch_size).map(data.parse)
    history = model.fit(rows, epochs=args.epochs, verbose=0)
    model.save(args.model)
    return history.history["accuracy"][-1]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", help="folder of data_batch*.bin; generated ones by default")
    parser.add_argument("--model", default="cifar10.keras")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=20)
    parser.add_argument("--learning_rate", type=float, default=0.002)
    args = parser.parse_args()
    print("accuracy", main(args))
