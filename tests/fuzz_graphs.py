"""Random Keras graphs of all known layers through apply, strip, fuse, save, load and TFLite.

    make fuzz-graphs COUNT=2000 SEED=0

(45 minutes on one core). Every graph is a few lines of Keras code, which are printed
if it fails, after layers have been taken out of it for as long as it still does.
"""

import argparse
import contextlib
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from random_graphs import Graph, Line, graph_of, needed

import espace_tf
from espace_tf import kernels
from espace_tf.network import costs
from espace_tf.network.graph import layers, nodes
from espace_tf.network.sites import read_sites
from espace_tf.rewriting.fuse import fuse

OURS = {"MaskedConv2D", "DecomposedConv2D", "FusedGraph"}
TOLERANCE = 1e-4  # of the largest output


class WrongError(Exception):
    """A step of the check that gave other numbers."""


def same(step, found, wanted):
    for index, (one, other) in enumerate(
        zip(tf.nest.flatten(found), tf.nest.flatten(wanted), strict=True)
    ):
        one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
        if one.shape != other.shape:
            raise WrongError(f"{step}: output {index} has shape {one.shape}, not {other.shape}")
        if not one.size:
            continue
        off, most = np.abs(one - other).max(), np.abs(other).max()
        if not off <= TOLERANCE * max(most, 1e-3):
            raise WrongError(f"{step}: output {index} is off by {off:.3g} of {most:.3g}")


def images(model):
    """How many: Keras adds [n, 1, 1, 1] to [n, n, h, c] along the second axis, as if a bias."""
    sizes = {tensor.shape[1] for _, given, made, _ in nodes(model) for tensor in (*given, *made)}
    return next(count for count in (2, 3, 5, 7, 11, 13) if count not in sizes)


def run(graph, seed):
    """The graph's model with random weights, a random batch, and what Keras makes of it."""
    model = graph.build(seed)
    r = np.random.default_rng(seed)
    batch = images(model)
    x = [r.normal(size=(batch, *tensor.shape[1:])).astype("float32") for tensor in model.inputs]
    return model, x, model(x)


def check(graph, seed, tflite=False):
    """Raises WrongError, or what the library raises, if a step of it is wrong for a graph."""
    model, x, wanted = run(graph, seed)
    same("strip, not fused", espace_tf.strip(model, fuse=False)(x), wanted)
    dense = fuse(espace_tf.strip(model, fuse=False))
    same("fuse", dense(x), wanted)
    if costs.macs(dense) != costs.macs(model):
        raise WrongError("multiply-accumulates of the fused model are others")
    half = model
    if any(not site.skip for site in read_sites(model)):
        full = espace_tf.apply(model, espace_tf.Plan.uniform(model))
        same("apply at full rank", full(x), wanted)
        same("strip at full rank", espace_tf.strip(full)(x), wanted)
        half = espace_tf.apply(model, espace_tf.Plan.uniform(model, rank_ratio=0.5, keep=0.4))
        wanted = half(x)
    stripped = espace_tf.strip(half)
    same("strip at half rank, not fused", espace_tf.strip(half, fuse=False)(x), wanted)
    same("strip at half rank", stripped(x), wanted)
    stock = espace_tf.strip(stripped if seed % 2 else half, stock=True)
    same("strip at half rank into stock layers", stock(x), wanted)
    ours = {type(each).__name__ for each in layers(stock).values()} & OURS
    if ours:
        raise WrongError(f"stock layers: there still is a {', '.join(sorted(ours))}")
    with kernels.plain():
        same("the layers of fused graphs", stripped(x), wanted)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        stripped.save(path)
        same("save and load", keras.models.load_model(path)(x), wanted)
        if tflite:
            try:
                export = espace_tf.export_tflite(half, Path(folder) / "model.tflite")
            except ValueError as error:
                # In words: TensorFlow's converter misses a GELU that a ReLU reads (docs/limits.md).
                if "no built-in operator for its Erfc" not in str(error):
                    raise
                return
            if not export.max_difference < 1e-3 * max(np.abs(np.asarray(v)).max() for v in wanted):
                raise WrongError(f"TFLite: off by {export.max_difference:.3g}")


def failure(graph, seed, tflite=False):
    """What is wrong with a graph, in words, and the first of them; None: nothing."""
    try:
        check(graph, seed, tflite)
    except WrongError as error:
        return str(error), str(error).split(":")[0]
    except Exception as error:
        words = "".join(traceback.format_exception(error)[-3:])
        return words, type(error).__name__
    return None


def shrunk(graph, seed, tflite, tries=80):
    """A smaller graph that fails alike: outputs left out, layers skipped."""
    wanted, tried = failure(graph, seed, tflite), 0
    again = True
    while again:
        again = False
        for candidate in smaller(graph):
            tried, found = tried + 1, None
            if tried > tries:
                return graph
            with contextlib.suppress(Exception):  # Keras itself may not run what was cut
                run(candidate, seed)
                found = failure(candidate, seed, tflite)
            if found and wanted and found[1] == wanted[1]:
                graph, again = candidate, True
                break
    return graph


def smaller(graph):
    for output in graph.outputs if len(graph.outputs) > 1 else ():
        rest = [name for name in graph.outputs if name != output]
        yield needed(Graph(graph.lines, graph.inputs, rest))
    for line in reversed(graph.lines):
        for other in dict.fromkeys(line.reads) if line.name[0] == "t" else ():

            def renamed(name, line=line, other=other):
                return other if name == line.name else name

            lines = [
                Line(each.name, each.code, tuple(map(renamed, each.reads)))
                for each in graph.lines
                if each is not line
            ]
            outputs = list(dict.fromkeys(map(renamed, graph.outputs)))
            yield needed(Graph(lines, graph.inputs, outputs))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    wrong = 0
    for number in range(arguments.count):
        seed, tflite = arguments.seed + number, number % 10 == 0
        graph = graph_of(seed)
        found = failure(graph, seed, tflite)
        if found:
            wrong += 1
            least = shrunk(graph, seed, tflite)
            words = failure(least, seed, tflite) or found
            print(f"seed {seed}: {words[0]}\n{least.code()}\n", flush=True)
        if number % 20 == 19:
            keras.utils.clear_session()
            print(f"{number + 1} graphs, {wrong} wrong", flush=True)
    print(f"{arguments.count} graphs from seed {arguments.seed}, {wrong} wrong")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
