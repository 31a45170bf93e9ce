"""Weights as TensorFlow.js keeps them."""

from typing import Any

import numpy as np


def tensors(manifest: list[dict[str, Any]], data: bytes) -> dict[str, np.ndarray]:
    """The weights of TensorFlow.js's format by name: float32, or integers with scale and offset.

    Args:
        manifest: groups with the name, shape, dtype and quantization of each weight, in order.
        data: their bytes, one after the other.
    """
    found, start = {}, 0
    for each in (weight for group in manifest for weight in group["weights"]):
        how = each.get("quantization", {})
        count = int(np.prod(each["shape"]))
        raw = np.frombuffer(data, how.get("dtype", each["dtype"]), count, start)
        start += raw.nbytes
        value = raw.astype(np.float32) * how.get("scale", 1.0) + how.get("min", 0.0)
        found[each["name"]] = value.reshape(each["shape"]).astype(np.float32)
    if start != len(data):
        raise ValueError(f"the weights must fill {len(data)} bytes. Received: {start} of them")
    return found
