"""Where the time of fused graphs goes: every step beside the roof that the machine sets for it.

    python benchmarks/engine.py --json=out/engine.json

Networks with random weights, each dense and compressed (Plan.uniform with --rank_ratio and --keep),
are stripped and fused. A step cannot take less than its operations at the machine's highest rate,
nor less than its reads and writes at the rate at which memory of their size is copied; the
longer of both is its roof. Both rates are measured in the same minutes, on one thread: TensorFlow's
product of two matrices, NumPy's copies. Then whole networks take turns, on one thread and on more:
TensorFlow's dense network, the dense one fused, the compressed one fused, and with --litert the
compressed one in LiteRT. Processes with different numbers of threads take turns too, so that a slow
minute hits them alike. Prints the table of docs/engine.md.

"of ideal" is the time of a compressed network over what its multiply-accumulates would take at
the rate of TensorFlow's dense network, on as many threads.
"""

import contextlib
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.engine_report import FORMS, report
from benchmarks.engine_steps import Profile, pairs
from benchmarks.networks import NETWORKS, build
from benchmarks.steps import write_json
from espace_tf import Plan, apply, strip
from espace_tf.deploy.comparison import noise
from espace_tf.files import output_path
from espace_tf.network import costs
from espace_tf.rewriting.fuse import fuse
from espace_tf.timing import measure, runtimes

_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), "Which.")
_BATCHES = flags.DEFINE_list("batches", ["1", "16"], "Batch sizes.")
_THREADS = flags.DEFINE_list("threads", ["1", "2"], "Numbers of threads; the first one is 1.")
_RANK = flags.DEFINE_float("rank_ratio", 0.3, "Of the compressed networks' pairs.", 0, 1)
_KEEP = flags.DEFINE_float("keep", 0.6, "Share of the positions that they compute.", 0, 1)
_LITERT = flags.DEFINE_bool("litert", True, "Time the compressed networks in LiteRT too.")
_ROUNDS = flags.DEFINE_integer("rounds", 15, "Turns of everything that is compared, at most.", 3)
_SECONDS = flags.DEFINE_float("seconds", 25, "After which no further turn is begun.", 0)
_JSON = flags.DEFINE_string("json", None, "File to write everything to.")

_SIDE = 1024  # of the matrices that show the highest rate
_SIZES = 1 << np.arange(15, 27)  # bytes read and written by the copies


class Roofs:
    """The highest rates of one thread: operations, and bytes of copies by their size."""

    def __init__(self):
        matrix = tf.random.normal((_SIDE, _SIDE))
        self._product = tf.function(tf.linalg.matmul).get_concrete_function(matrix, matrix)
        self._matrix, self._best = matrix, np.zeros(1 + len(_SIZES))

    def __call__(self) -> None:
        """Measures once more; the best of all counts."""
        found = [2 * _SIDE**3 / _best_seconds(lambda: self._product(self._matrix, self._matrix), 2)]
        for size in _SIZES:
            source, target = np.ones((2, size // 8), np.float32)
            times = max(1, (1 << 22) // size)

            def copy(source=source, target=target, times=times) -> None:
                for _ in range(times):
                    np.copyto(target, source)

            found.append(size * times / _best_seconds(copy, 3))
        self._best = np.maximum(self._best, found)

    @property
    def operations(self) -> float:
        """Per second."""
        return float(self._best[0])

    def copied(self, size: float) -> float:
        """Bytes per second, read and written, of copies of so many bytes; of more no faster."""
        rates = np.minimum.accumulate(self._best[1:])
        return float(np.interp(np.log2(max(size, 1)), np.log2(_SIZES), rates))


def _best_seconds(call: Callable[[], Any], repeats: int = 3) -> float:
    """The least of a few calls."""
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        found.append(time.perf_counter() - start)
    return min(found)


def models(name: str) -> dict[str, keras.Model]:
    """The network as it is, ready for inference; dense and compressed ones in fused graphs."""
    net = build(name)
    plan = Plan.uniform(net, rank_ratio=_RANK.value, keep=_KEEP.value)
    small, plain = apply(net, plan), strip(net)
    return {"plain": plain, "dense": fuse(plain), "compressed": strip(small), "layers": small}


def profile(fused: keras.Model, batch_size: int, roofs: Roofs) -> list[dict[str, Any]]:
    """Of each step its milliseconds, what it does in them, and the share of its roof."""
    run = Profile(fused, batch_size)
    measure.alternate([run, roofs], repeats=_ROUNDS.value, seconds=_SECONDS.value)
    rows = []
    for step, nanoseconds in zip(run.steps, np.median(run.calls[2:], axis=0), strict=True):
        seconds = max(nanoseconds, 1) / 1e9
        moved = batch_size * step.bytes + step.filter_bytes
        copying = moved / roofs.copied(step.bytes + step.filter_bytes)
        roof = max(batch_size * step.operations / roofs.operations, copying)
        rows.append(
            {
                "step": str(step),
                "kind": step.kind,
                "ms": 1e3 * seconds,
                "gflops": batch_size * step.operations / seconds / 1e9,
                "gbytes": moved / seconds / 1e9,
                "of_roof": roof / seconds,
            }
        )
    return rows


def worker(connection: Any, argv: Sequence[str], threads: int, name: str) -> None:
    """A process of so many threads: answers requests until it is told None."""
    flags.FLAGS(list(argv))
    runtimes.set_threads(threads)
    made = models(name)
    calls: dict[int, list[Callable[[], Any]]] = {}
    while (request := connection.recv()) is not None:
        task, batch = request
        if task == "steps":
            roofs = Roofs()
            answer = {key: profile(made[key], batch, roofs) for key in FORMS[1:]}
            answer["peak"] = roofs.operations / 1e9
            answer["copies"] = [roofs.copied(size) / 1e9 for size in _SIZES]
        elif task == "pairs":
            answer = pairs(name, batch, threads)
        elif task == "macs":
            answer = {key: costs.macs(made[key]) for key in ("plain", "layers")}
        else:
            if batch not in calls:
                calls[batch] = list(_calls(made, batch, threads))
                measure.rounds(calls[batch], 1)
            answer = [_best_seconds(call, 3 if batch == 1 else 1) for call in calls[batch]]
        connection.send(answer)


def _calls(made: dict[str, keras.Model], batch: int, threads: int) -> Iterator[Callable[[], Any]]:
    """In the order of FORMS, then LiteRT."""
    arrays = noise(made["plain"], batch)
    for key in FORMS:
        yield runtimes.runner(made[key], arrays, "tf", threads)[0]
    if _LITERT.value:
        yield runtimes.runner(made["layers"], arrays, "litert", threads)[0]


def study(name: str, argv: Sequence[str]) -> dict[str, Any]:
    """Everything about one network."""
    context = multiprocessing.get_context("spawn")
    threads = [int(each) for each in _THREADS.value]
    pipes, processes = [], []
    for each in threads:
        here, there = context.Pipe()
        processes.append(context.Process(target=worker, args=(there, argv, each, name)))
        processes[-1].start()
        pipes.append(here)

    def ask(pipe: Any, task: str, batch: int) -> Any:
        pipe.send((task, batch))
        return pipe.recv()

    found: dict[str, Any] = {"network": name, "threads": threads, "batches": []}
    try:
        found["macs"] = [ask(pipe, "macs", 0) for pipe in pipes][0]  # all are ready then
        for batch in map(int, _BATCHES.value):
            row = {"batch": batch, **ask(pipes[0], "steps", batch)}
            row["pairs"] = ask(pipes[0], "pairs", batch)
            times: list[list[list[float]]] = []
            end = time.perf_counter() + _SECONDS.value
            while len(times) < 3 or (len(times) < _ROUNDS.value and time.perf_counter() < end):
                times.append([ask(pipe, "times", batch) for pipe in pipes])
            row["seconds"] = times  # [round][threads][form]
            found["batches"].append(row)
    finally:
        for pipe, process in zip(pipes, processes, strict=True):
            with contextlib.suppress(OSError):  # it may have died of an error, which it told
                pipe.send(None)
            process.join()
    return found


def main(argv: Sequence[str]) -> None:
    """Studies every network and prints the tables."""
    if _THREADS.value[:1] != ["1"]:
        raise app.UsageError(f"--threads must begin with 1. Received: {_THREADS.value}")
    unknown = sorted(set(_NETWORKS.value) - set(NETWORKS))
    if unknown:
        raise app.UsageError(f"--networks must be of {NETWORKS}. Received: {unknown}")
    path = None if _JSON.value is None else output_path(_JSON.value, "--json")
    found = []
    for name in _NETWORKS.value:
        found.append(study(name, sys.argv))
        if path is not None:
            write_json(path, found)
        print(f"{name} is done", file=sys.stderr, flush=True)
    print(report(found))


if __name__ == "__main__":
    app.run(main)
