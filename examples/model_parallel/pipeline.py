# SPDX-License-Identifier: Apache-2.0
"""A network cut into two stages on two nodes; micro-batches keep both busy. Fed by Spark."""

import argparse

import model_parallel_data as data

import arcflow.cli


def encoder(args):
    """Return the first stage."""
    import keras

    return keras.Sequential(
        [
            keras.Input((data.SIDE * data.SIDE,)),
            keras.layers.Reshape((data.SIDE, data.SIDE, 1)),
            keras.layers.Conv2D(
                args.width,
                3,
                padding="same",
                activation="relu",
                kernel_initializer=keras.initializers.GlorotUniform(1),
            ),
            keras.layers.MaxPooling2D(),
        ],
        name="encoder",
    )


def classifier(args):
    """Return the second stage."""
    import keras

    return keras.Sequential(
        [
            keras.Input((data.SIDE // 2, data.SIDE // 2, args.width)),
            keras.layers.Flatten(),
            keras.layers.Dense(
                64, activation="relu", kernel_initializer=keras.initializers.GlorotUniform(2)
            ),
            keras.layers.Dense(
                data.CLASSES, kernel_initializer=keras.initializers.GlorotUniform(3)
            ),
        ],
        name="classifier",
    )


def main(ctx, args):
    import keras
    import numpy as np

    from arcflow.tf import Pipeline

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    optimizer = lambda: keras.optimizers.SGD(args.learning_rate, momentum=0.9)  # noqa: E731
    first, second = (1, 2) if ctx.size > 2 else (0, 1)
    pipeline = Pipeline(
        [
            (ctx.device(first), lambda: encoder(args)),
            (ctx.device(second), lambda: classifier(args)),
        ],
        loss=loss,
        optimizer=optimizer,
        micro_batches=args.micro_batches,
    )
    rows = ctx.dataset("train", args.batch_size, features="x", label="y")
    losses = pipeline.fit(rows, epochs=args.epochs, callbacks=[ctx.callback()])["loss"]
    difference = None
    if args.compare:
        whole = keras.Sequential([encoder(args), classifier(args)])
        whole.compile(optimizer(), loss)
        whole.fit(rows, epochs=args.epochs, verbose=0)
        pairs = zip(pipeline.model.get_weights(), whole.get_weights(), strict=True)
        difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    if args.model:
        ctx.save(pipeline.model, args.model)
    lies = {one.name: sorted({v.value.device for v in one.variables}) for one in pipeline.stages}
    return {"losses": losses, "places": lies, "difference": difference}


def parser():
    parser = arcflow.cli.add_arguments(argparse.ArgumentParser())
    parser.add_argument("--model", help="where to save the trained model")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--count", type=int, default=1797, help="pictures")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--micro_batches", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=0.05)
    parser.add_argument("--compare", action="store_true", help="with the network in one piece, too")
    return parser


if __name__ == "__main__":
    args = parser().parse_args()
    with arcflow.cli.cluster(None, args, workers_serve=True) as cluster:
        rows = data.digits_frame(args.count)
        for name, value in cluster.run(lambda ctx: main(ctx, args), rows).values[0].items():
            print(name, value)
