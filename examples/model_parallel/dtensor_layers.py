# SPDX-License-Identifier: Apache-2.0
"""A network whose weights are split over the nodes by DTensor: each node holds, and computes, a part."""

import argparse

import model_parallel_data as data

import arcflow.cli


def initial(args):
    """Return the weights that both ways begin with."""
    import numpy as np

    chance = np.random.default_rng(3)
    shapes = ((data.SIDE * data.SIDE, args.width), (args.width, data.CLASSES))
    return [(chance.normal(size=s) / np.sqrt(s[0])).astype("float32") for s in shapes]


def loss_of(x, y, first, second):
    """Return the mean loss of a network with one hidden layer."""
    import tensorflow as tf

    logits = tf.matmul(tf.nn.relu(tf.matmul(x, first)), second)
    return tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels=y, logits=logits))


def make_step(variables, learning_rate):
    """Return a step of SGD; the same for whole weights and for split ones."""
    import tensorflow as tf

    @tf.function
    def step(x, y):
        with tf.GradientTape() as tape:
            loss = loss_of(x, y, *variables)
        for one, gradient in zip(variables, tape.gradient(loss, variables), strict=True):
            one.assign_sub(learning_rate * gradient)
        return loss

    return step


def batches(args):
    """Return the digits in batches; every node reads the same."""
    import numpy as np

    x, y = data.digits(args.count)
    labels = np.eye(data.CLASSES, dtype="float32")[y]
    cuts = [slice(i, i + args.batch_size) for i in range(0, len(x), args.batch_size)]
    return [(x[cut], labels[cut]) for cut in cuts if len(x[cut]) == args.batch_size]


def main(ctx, args):
    mesh = ctx.mesh({"model": ctx.size})
    import numpy as np
    import tensorflow as tf
    from tensorflow.experimental import dtensor

    whole = dtensor.Layout.replicated(mesh, rank=2)
    # The hidden layer is split: columns of the first weights, rows of the second.
    layouts = [
        dtensor.Layout([dtensor.UNSHARDED, "model"], mesh),
        dtensor.Layout(["model", dtensor.UNSHARDED], mesh),
    ]
    variables = []
    for value, layout in zip(initial(args), layouts, strict=True):
        there = dtensor.copy_to_mesh(tf.constant(value), whole)
        variables.append(dtensor.DVariable(dtensor.relayout(there, layout)))
    step = make_step(variables, args.learning_rate)
    losses = []
    for _ in range(args.epochs):
        found = [
            step(*(dtensor.copy_to_mesh(tf.constant(v), whole) for v in batch))
            for batch in batches(args)
        ]
        losses.append(float(np.mean([float(dtensor.unpack(one)[0]) for one in found])))
        ctx.log(loss=losses[-1])
    parts = [dtensor.unpack(one.read_value())[0].numpy() for one in variables]
    difference = None
    if args.compare:
        alone = [tf.Variable(value) for value in initial(args)]
        one_step = make_step(alone, args.learning_rate)
        for _ in range(args.epochs):
            for x, y in batches(args):
                one_step(tf.constant(x), tf.constant(y))
        mine = slice(ctx.rank * args.width // ctx.size, (ctx.rank + 1) * args.width // ctx.size)
        expected = [alone[0].numpy()[:, mine], alone[1].numpy()[mine]]
        difference = max(float(np.abs(a - b).max()) for a, b in zip(parts, expected, strict=True))
    return {"losses": losses, "parts": [part.shape for part in parts], "difference": difference}


def parser():
    parser = arcflow.cli.add_arguments(argparse.ArgumentParser())
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--count", type=int, default=1797, help="pictures")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=0.3)
    parser.add_argument("--compare", action="store_true", help="with the network in one piece, too")
    return parser


if __name__ == "__main__":
    args = parser().parse_args()
    with arcflow.cli.cluster(None, args) as cluster:
        for rank, value in enumerate(cluster.run(lambda ctx: main(ctx, args)).values):
            print(f"node {rank}:", value)
