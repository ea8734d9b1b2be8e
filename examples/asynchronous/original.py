# SPDX-License-Identifier: Apache-2.0
"""A regression on one machine. The program beside it trains the same model over parameter servers."""

import argparse

import keras
import regression_data as data


def make_model(learning_rate):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(learning_rate), "mse", metrics=["mae"])
    return model


def main(args):
    rows = data.read(args.rows, args.batch_size).repeat()
    model = make_model(args.learning_rate)
    options = {"epochs": args.epochs, "steps_per_epoch": args.steps}
    history = model.fit(rows, **options, verbose=0).history
    model.save(args.model)
    return history["loss"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", help="pattern of files: x,x,x,x,y a line")
    parser.add_argument("--model", default="regression.keras")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=0.05)
    args = parser.parse_args()
    print("losses", main(args))
