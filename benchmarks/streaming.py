"""What streaming costs: memory of `train` on a dataset on disk, images per second of its pipeline.

    python benchmarks/tfds_folders.py imagenet2012 --data_dir=out/tfds --images=20000
    python benchmarks/streaming.py --data_dir=out/tfds --output_dir=out/streaming

trains a network on the stand-in of ImageNet through `python -m espace_tf.bin.train`, with crops,
and looks at the resident memory of that process ten times a second, for one epoch or
--train_minutes (0: not at all). It is shown for each tenth of the bytes that the process has read:
if it is bounded, the last ones are alike. (20,000 images are 2 GB; --images=2000 --copies=120 are
20 GB to read.) Then, for --seconds each (0: not at all), it counts the images that the pipeline
alone gives in a second, and those that the training step takes of a batch that is there. The
pipeline is fast enough if its number is the larger one. Files in the page cache of the system are
not counted as memory.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from absl import app, flags
from rich.console import Console

from espace_tf.bin.frame import tables
from espace_tf.bin.inputs import datasets, networks, pixels, sources

_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where the stand-in is.", required=True)
_MODEL = flags.DEFINE_string("model", "squeezenet", "What is trained.")
_SPLIT = flags.DEFINE_string("train_split", "train", "How much of it: train[:2000] is quicker.")
_SIZE = flags.DEFINE_integer("image_size", 224, "Height and width of the crops.", 1)
_BATCH = flags.DEFINE_integer("train_batch_size", 32, "Images per step.", 1)
_SECONDS = flags.DEFINE_integer("seconds", 20, "How long each rate is measured.", 0)
_MINUTES = flags.DEFINE_float("train_minutes", None, "Ends the training after so many; none: never")
_OUTPUT = flags.DEFINE_string("output_dir", "out/streaming", "Where the results go.")

ROOT = Path(__file__).parents[1]


def train() -> dict[str, Any]:
    """Trains in a process of its own; its seconds, bytes read, and most resident bytes."""
    command = [
        *(sys.executable, "-m", "espace_tf.bin.train", f"--model={_MODEL.value}", "--overwrite"),
        *("--dataset=imagenet2012", f"--data_dir={_DATA_DIR.value}", "--preprocessing=imagenet"),
        *(f"--train_split={_SPLIT.value}", "--test_split=validation[:64]", "--optimizer=sgd"),
        *("--learning_rate=0.01", f"--train_batch_size={_BATCH.value}"),
        f"--image_size={_SIZE.value}",
        f"--output_dir={_OUTPUT.value}/train",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    begun, seen = time.monotonic(), []
    end = float("inf") if _MINUTES.value is None else begun + 60 * _MINUTES.value
    process = subprocess.Popen(command, env=environment)
    watched = psutil.Process(process.pid)
    while process.poll() is None and time.monotonic() < end:
        try:
            seen.append((watched.io_counters().read_chars, watched.memory_info().rss))
        except psutil.NoSuchProcess:
            break
        time.sleep(0.1)
    if time.monotonic() >= end:
        process.kill()
        process.wait()
    elif process.wait():
        raise RuntimeError("espace-train failed")
    read, resident = np.array(seen).T
    return {
        "seconds": time.monotonic() - begun,
        "read_bytes": int(read[-1]),
        "resident_bytes": int(resident.max()),
        "resident_bytes_by_tenth": most_by_tenth(read, resident),
    }


def most_by_tenth(read: np.ndarray, resident: np.ndarray) -> list[int]:
    """The most resident bytes while each tenth of the bytes was read.

    Args:
        read: bytes until each moment.
        resident: bytes at that moment.

    Example:
        >>> most_by_tenth(np.arange(20), np.minimum(np.arange(20), 7))
        [1, 3, 5, 7, 7, 7, 7, 7, 7, 7]
    """
    tenths = np.minimum(10 * read // max(read[-1] + 1, 1), 9)
    found = [resident[tenths == tenth] for tenth in range(10)]
    return [int(each.max()) if len(each) else 0 for each in found]


def rates() -> dict[str, float]:
    """Images per second that the pipeline gives, and that the training step takes."""
    source = sources.find("imagenet2012", data_dir=_DATA_DIR.value)
    model = networks.build(_MODEL.value, (_SIZE.value, _SIZE.value, 3), source.classes, "mean_std")
    chosen = pixels.chosen("imagenet", model)
    examples = datasets.Examples(source, model, chosen, batch_size=_BATCH.value)
    model.compile("sgd", "sparse_categorical_crossentropy")
    batch = None

    def counted(step) -> float:
        images, begun = 0, time.monotonic()
        while time.monotonic() < begun + _SECONDS.value:
            step()
            images += _BATCH.value
        return images / (time.monotonic() - begun)

    stream = iter(examples.training(_SPLIT.value).repeat())
    for _ in range(4):
        batch = next(stream)
    x, y = (np.asarray(part) for part in batch)
    model.train_on_batch(x, y)
    # In turns: other work on the machine then hits both alike.
    found = [
        (counted(lambda: next(stream)), counted(lambda: model.train_on_batch(x, y)))
        for _ in range(3)
    ]
    pipeline, step = np.median(found, axis=0)
    return {"pipeline": float(pipeline), "step": float(step)}


def main(argv: list[str]) -> None:
    """Measures and prints the table."""
    del argv
    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    size = sum(each.stat().st_size for each in Path(_DATA_DIR.value).rglob("imagenet2012-train*"))
    found, rows = {"dataset_bytes": size}, [("dataset on disk", f"{size / 2**30:.2f} GiB")]
    if _MINUTES.value != 0:
        found |= train()
        tenths = " ".join(f"{each / 2**30:.2f}" for each in found["resident_bytes_by_tenth"])
        rows += [
            ("read by espace-train", f"{found['read_bytes'] / 2**30:.2f} GiB"),
            ("its seconds", f"{found['seconds']:.0f}"),
            ("its most resident memory", f"{found['resident_bytes'] / 2**30:.2f} GiB"),
            ("the same in each tenth of what it read", tenths),
        ]
    if _SECONDS.value:
        found |= rates()
        rows += [
            ("images per second, pipeline alone", f"{found['pipeline']:.0f}"),
            ("images per second, training step alone", f"{found['step']:.0f}"),
        ]
    (output / "streaming.json").write_text(json.dumps(found, indent=2) + "\n")
    Console().print(tables.grid(f"{_MODEL.value}, batches of {_BATCH.value}", ["", ""], rows))


if __name__ == "__main__":
    app.run(main)
