"""The models and data that the shared flags name, opened."""

from typing import Any

from espace_tf.bin import shared_flags
from espace_tf.bin.inputs import models, pixels, sources
from espace_tf.bin.inputs.datasets import Examples
from espace_tf.bin.inputs.sources import Source


def source() -> Source:
    """The dataset of --dataset.

    Raises:
        ValueError: it cannot be read.
    """
    data_dir, download = shared_flags.DATA_DIR.value, shared_flags.DOWNLOAD.value
    found = sources.find(shared_flags.DATASET.value, data_dir=data_dir, download=download)
    for flag in (shared_flags.TRAIN_SPLIT, shared_flags.TEST_SPLIT):
        if flag.present and flag.value is not None:
            found.count(flag.value)  # refuses what is not there
    return found


def model(flag: Any) -> Any:
    """The model of a flag, None without one."""
    return None if flag.value is None else models.load(flag.value, f"--{flag.name}")


def examples(found: Source, network: Any, name: str | None = None) -> Examples:
    """The dataset as a network takes it.

    Args:
        found: the dataset.
        network: the Keras model.
        name: of the network, which tells what values it was trained on; None: the model's.
    """
    return Examples(
        found,
        network,
        pixels.chosen(shared_flags.PREPROCESSING.value, network, name),
        seed=shared_flags.SEED.value,
        buffer=shared_flags.SHUFFLE_BUFFER.value,
        batch_size=shared_flags.TRAIN_BATCH.value,
    )


def test_split(found: Source) -> str | None:
    """The split to judge on: the one that is asked for, else one that is there; None if none is."""
    return shared_flags.TEST_SPLIT.value or found.held_out()


def described(found: Source, data: Examples, *splits: str | None) -> str:
    """A dataset in words, for a reader."""
    sizes = ", ".join(f"{split}: {found.count(split):,}" for split in splits if split)
    how = "arrays in memory" if data.in_memory else "a stream"
    return f"{found.name} ({sizes} examples, {how}), values {data.preprocessing}"
