import importlib

import numpy as np
import pytest


@pytest.fixture(params=["keras", "tf_keras"])
def library(request):
    return importlib.import_module(request.param)


@pytest.fixture
def stock_conv():
    """A stock Conv2D, run group by group (TensorFlow's grouped kernel is not on every CPU)."""

    def run(library, inputs, kernel, bias=None, groups=1, **options):
        parts = []
        for part, weights in zip(
            np.split(inputs, groups, -1), np.split(kernel, groups, -1), strict=True
        ):
            size, filters = kernel.shape[:2], weights.shape[-1]
            conv = library.layers.Conv2D(filters, size, use_bias=False, **options)
            conv.build(part.shape)
            conv.set_weights([weights])
            parts.append(np.array(conv(part)))
        return np.concatenate(parts, -1) + (0 if bias is None else bias)

    return run


@pytest.fixture
def nearest_kept():
    """For each position of a map the nearest kept one, by brute force; the lowest of equals."""

    def run(size, positions):
        positions = np.unique(positions)
        y, x = np.divmod(np.arange(size[0] * size[1]), size[1])
        kept_y, kept_x = np.divmod(positions, size[1])
        distances = (y[:, None] - kept_y) ** 2 + (x[:, None] - kept_x) ** 2
        return positions[distances.argmin(1)]

    return run


@pytest.fixture
def show_nearest(nearest_kept):
    """A map [B, OH, OW, N] in which each position shows its nearest kept one."""

    def run(outputs, positions):
        size = outputs.shape[1:3]
        rows = outputs.reshape(len(outputs), size[0] * size[1], -1)
        return rows[:, nearest_kept(size, positions)].reshape(outputs.shape)

    return run


@pytest.fixture
def build():
    """A layer called once on `inputs`, every weight random; and those weights."""

    def run(layer, inputs, rng):
        layer(inputs)
        weights = [rng.normal(size=np.shape(w)).astype("float32") for w in layer.get_weights()]
        layer.set_weights(weights)
        return layer, weights

    return run
