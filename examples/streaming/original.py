# SPDX-License-Identifier: Apache-2.0
"""A regression on one machine, over rows in files. The program beside it trains on a stream of them."""

import argparse

import keras
import streaming_data as data


def make_model(learning_rate):
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(16, activation="tanh"), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(learning_rate), "mse", metrics=["mae"])
    return model


def main(args):
    rows = data.read(args.rows, args.batch_size)
    model = make_model(args.learning_rate)
    model.fit(rows, verbose=0)
    model.save(args.model)
    return int(model.optimizer.iterations)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", required=True, help="folder of files: x,x,x,x,y a line")
    parser.add_argument("--model", default="streaming.keras")
    parser.add_argument("--batch_size", type=int, default=10)
    parser.add_argument("--learning_rate", type=float, default=0.1)
    args = parser.parse_args()
    print("steps", main(args))
