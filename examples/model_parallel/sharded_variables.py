# SPDX-License-Identifier: Apache-2.0
"""A factorization of ratings whose tables are split over parameter servers; only touched rows travel."""

import argparse

import model_parallel_data as data

import arcflow.cli


def make_tables(args):
    """Make the tables of users and items; under a partitioner each is a list of shards."""
    import tensorflow as tf

    made = []
    for name, count, seed in (("users", args.users, 1), ("items", args.items, 2)):
        # An initializer of Keras would make each shard where it lies; values can be compared.
        values = tf.random.stateless_normal((count, args.width), (seed, 7), stddev=0.5)
        made.append(tf.Variable(values, name=name))
    return made


def make_step(tables, learning_rate):
    """Return a step of SGD that gathers, and writes back, only the rows of its batch."""
    import tensorflow as tf

    shards = [list(getattr(table, "variables", [table])) for table in tables]

    @tf.function
    def step(who, what, rated):
        with tf.GradientTape() as tape:
            rows = [
                tf.nn.embedding_lookup(table, ids)
                for table, ids in zip(tables, (who, what), strict=True)
            ]
            loss = tf.reduce_mean(tf.square(tf.reduce_sum(rows[0] * rows[1], axis=1) - rated))
        for parts, found in zip(shards, tape.gradient(loss, shards), strict=True):
            for part, gradient in zip(parts, found, strict=True):
                if gradient is not None:
                    part.scatter_sub(
                        tf.IndexedSlices(learning_rate * gradient.values, gradient.indices)
                    )
        return loss

    return step


def main(ctx, args):
    import numpy as np
    import tensorflow as tf

    partitioner = tf.distribute.experimental.partitioners.FixedShardsPartitioner(
        len(ctx.cluster["ps"])
    )
    strategy = ctx.strategy(variable_partitioner=partitioner)
    coordinator = ctx.coordinator()
    with strategy.scope():
        tables = make_tables(args)
    step = make_step(tables, args.learning_rate)
    who, what, rated = data.ratings(args.users, args.items, args.count)
    batches = [slice(i, i + args.batch_size) for i in range(0, args.count, args.batch_size)]
    losses = []
    for _ in range(args.epochs):
        epoch = []
        for one in batches:
            epoch.append(coordinator.schedule(step, args=(who[one], what[one], rated[one])))
            if args.compare:
                coordinator.join()  # one after another, so that both ways can be compared
        coordinator.join()
        losses.append(float(np.mean([one.fetch() for one in epoch])))
    shards = [[(one.device, tuple(one.shape)) for one in table.variables] for table in tables]
    difference = None
    if args.compare:
        whole = make_tables(args)
        alone = make_step(whole, args.learning_rate)
        for _ in range(args.epochs):
            for one in batches:
                alone(who[one], what[one], rated[one])
        difference = max(
            float(np.abs(tf.convert_to_tensor(a).numpy() - b.numpy()).max())
            for a, b in zip(tables, whole, strict=True)
        )
    return {"losses": losses, "shards": shards, "difference": difference}


def parser():
    parser = arcflow.cli.add_arguments(argparse.ArgumentParser())
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--items", type=int, default=501)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch_size", type=int, default=200)
    parser.add_argument("--learning_rate", type=float, default=5.0)
    parser.add_argument("--compare", action="store_true", help="with the tables in one piece, too")
    return parser


if __name__ == "__main__":
    args = parser().parse_args()
    with arcflow.cli.cluster(None, args) as cluster:
        for name, value in cluster.run(lambda ctx: main(ctx, args)).values[0].items():
            print(name, value)
