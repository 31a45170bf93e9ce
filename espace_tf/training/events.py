"""Numbers, tables and images for TensorBoard, without the package tensorboard."""

import math
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf


def write(tag: str, plugin: str, value: Any, step: int) -> None:
    """tf.summary.scalar, .image or .text: those need the package tensorboard only to write.

    Args:
        tag: the name.
        plugin: "scalars", "text" or "images".
        value: what that plugin reads.
        step: where on the axis.
    """
    metadata = tf.compat.v1.SummaryMetadata()
    metadata.plugin_data.plugin_name = plugin
    metadata.data_class = {"scalars": 1, "text": 2, "images": 3}[plugin]  # scalar, tensor, blobs
    tf.summary.write(tag, value, step, metadata)


def write_numbers(folder: str | Path, numbers: Mapping[str, Any], step: int = 0) -> None:
    """Every number of a nest of dictionaries as a scalar whose tag is its path.

    Args:
        folder: where the file of events goes.
        numbers: the nest; what is no finite number is left out.
        step: where on the axis.
    """
    writer = tf.summary.create_file_writer(str(folder))
    with writer.as_default():
        for tag, value in _numbers(numbers, ""):
            write(tag, "scalars", np.float32(value), step)
    writer.close()


def _numbers(nest: Mapping[str, Any], above: str):
    for name, value in nest.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{above}{name}/")
        elif isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
            yield f"{above}{name}", value
