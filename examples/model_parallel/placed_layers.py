# SPDX-License-Identifier: Apache-2.0
"""A network with two towers, each on a node of its own; Keras's own `fit` trains it, fed by Spark."""

import argparse

import model_parallel_data as data

import arcflow.cli


def make_model(args, places):
    """Make the network; `places` are the devices of its towers, None for a network in one place."""
    import keras

    import arcflow.tf

    half = data.SIDE * data.SIDE // 2
    picture = keras.Input((2 * half,))
    seen = []
    for number, place in enumerate(places):
        x = picture[:, number * half : (number + 1) * half]
        for layer in range(2):
            seed = keras.initializers.GlorotUniform(10 * number + layer)
            dense = keras.layers.Dense(
                args.width,
                activation="relu",
                kernel_initializer=seed,
                name=f"tower{number}_{layer}",
            )
            x = (arcflow.tf.place(dense, place) if place else dense)(x)
        seen.append(x)
    both = keras.layers.Concatenate()(seen)
    seed = keras.initializers.GlorotUniform(99)
    model = keras.Model(picture, keras.layers.Dense(data.CLASSES, kernel_initializer=seed)(both))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(args.learning_rate, momentum=0.9), loss)
    return model


def main(ctx, args):
    import numpy as np

    places = [ctx.device(rank) for rank in ((1, 2) if ctx.size > 2 else (0, 1))]
    model = make_model(args, places)
    rows = ctx.dataset("train", args.batch_size, features="x", label="y")
    losses = model.fit(rows, epochs=args.epochs, callbacks=[ctx.callback()], verbose=0).history
    difference = None
    if args.compare:
        whole = make_model(args, [None, None])
        whole.fit(rows, epochs=args.epochs, verbose=0)
        pairs = zip(model.get_weights(), whole.get_weights(), strict=True)
        difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    if args.model:
        ctx.save(model, args.model)  # a model as any other: it is placed nowhere when loaded
    lies = {one.name: one.kernel.value.device for one in model.layers if hasattr(one, "kernel")}
    return {"losses": losses["loss"], "places": lies, "difference": difference}


def parser():
    parser = arcflow.cli.add_arguments(argparse.ArgumentParser())
    parser.add_argument("--model", help="where to save the trained model")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--count", type=int, default=1797, help="pictures")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=0.05)
    parser.add_argument("--compare", action="store_true", help="with the network in one place, too")
    return parser


if __name__ == "__main__":
    args = parser().parse_args()
    with arcflow.cli.cluster(None, args, workers_serve=True) as cluster:
        rows = data.digits_frame(args.count)
        for name, value in cluster.run(lambda ctx: main(ctx, args), rows).values[0].items():
            print(name, value)
