"""On several machines, tried on one: the script of docs/guides/machines.md.

    python docs/guides/machines.py --workers=2 --output_dir=out/machines -- \\
        --model=out/compress/compressed.keras --original=out/train/model.keras \\
        --dataset=fashion_mnist --data_dir=out/tfds --train_split=train[:2560] --epochs=1 \\
        --train_batch_size=64 --optimizer=adam --learning_rate=1e-4

starts `espace_tf.bin.fine_tune` with the flags after -- once alone and once as --workers processes,
each with the TF_CONFIG that it would have on a machine of its own, and prints the checksum of each
process's weights, and how far the weights of both runs are apart. To tell what of that is rounding
it runs alone once more, with one thread, whose sums have another order. What the processes print
goes into files of --output_dir.
"""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from espace_tf.bin.inputs import models

_WORKERS = flags.DEFINE_integer("workers", 2, "Processes.", 2)
_OUTPUT = flags.DEFINE_string("output_dir", "out/machines", "Where the results go.")


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens at."""
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("localhost", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def start(arguments: list[str], log: Path, config: dict | None = None) -> subprocess.Popen:
    """The command as a process, of a cluster if there is one; what it prints goes into `log`."""
    environment = dict(os.environ)
    if config is not None:
        environment["TF_CONFIG"] = json.dumps(config)
    command = [sys.executable, "-m", "espace_tf.bin.fine_tune", *arguments]
    with open(log, "w") as file:
        return subprocess.Popen(command, env=environment, stdout=file)


def checksum(log: Path) -> str:
    """That of the weights, which every process prints."""
    return re.search(r"checksum\s+(\w+)", log.read_text())[1]


def apart(some: Sequence[Any], others: Sequence[Any]) -> float:
    """The largest difference of arrays; of one with numbers above 1 as a part of its largest."""
    found = [0.0]
    for one, other in zip(some, others, strict=True):
        one, other = np.asarray(one, float), np.asarray(other, float)
        found.append(np.abs(one - other).max() / max(1.0, np.abs(one).max()))
    return max(found)


def run_alone(arguments: list[str], log: Path) -> None:
    """The command in one process, to its end."""
    if start(arguments, log).wait():
        raise RuntimeError(f"espace-fine_tune failed: see {log}")


def compare(output: Path, name: str, what: str) -> None:
    """Prints how far the weights of a run are from those of one device."""
    one, other = (models.load(output / each / "model.keras") for each in ("one", name))
    weights = apart(one.trainable_weights, other.trainable_weights)
    moving = apart(one.non_trainable_weights, other.non_trainable_weights)
    print(f"{what} and one device: weights at most {weights:.1e} apart")
    print(f"  moving means and variances at most {moving:.1e} of the largest of a layer")


def main(argv: list[str]) -> None:
    """Runs all and compares."""
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    for name, more in (("one", []), ("thread", ["--threads=1"])):
        run_alone([*argv[1:], *more, f"--output_dir={output / name}"], output / f"{name}.log")
    together = [*argv[1:], f"--output_dir={output / 'several'}", "--strategy=multi_worker"]
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(_WORKERS.value)]}
    logs = [output / f"worker-{index}.log" for index in range(_WORKERS.value)]
    processes = [
        start(together, log, {"cluster": cluster, "task": {"type": "worker", "index": index}})
        for index, log in enumerate(logs)
    ]
    if any([process.wait() for process in processes]):
        raise RuntimeError("espace-fine_tune failed in one of the processes")
    print("Checksums of the weights:", *map(checksum, logs))
    compare(output, "several", f"{_WORKERS.value} processes")
    compare(output, "thread", "One thread")


if __name__ == "__main__":
    app.run(main)
