"""Well-known networks, stripped without being compressed: one fused graph from input to output."""

import keras
import numpy as np
import pytest
from fused_models import conv, same

from espace_tf.rewriting.strip import strip

LAYERS, SIDE = keras.layers, 32


def u_net(**options):
    image = keras.Input(options["input_shape"])
    x, skipped = image, []
    for filters in (6, 10):
        x = conv(x, filters, 3)
        skipped.append(x)
        x = LAYERS.MaxPooling2D()(x)
    x = conv(x, 16, 3, "swish")
    for filters, kind in ((10, "bilinear"), (6, "nearest")):
        x = LAYERS.Concatenate()([LAYERS.UpSampling2D(interpolation=kind)(x), skipped.pop()])
        x = conv(x, filters, 3)
    return keras.Model(image, conv(x, 1, 1, "sigmoid"))


NETWORKS = (
    u_net,
    keras.applications.MobileNetV2,
    keras.applications.MobileNetV3Small,
    keras.applications.MobileNetV3Large,
    keras.applications.EfficientNetB0,
    keras.applications.DenseNet121,
)


def filled(model):
    """Weights under which signals of all layers keep their size."""
    rng = np.random.default_rng(3)
    for weight in model.weights:
        shape = weight.shape
        if "variance" in weight.path:
            weight.assign(rng.uniform(0.5, 1.5, shape))
        elif "kernel" in weight.path:
            reads = np.prod(shape[:2] if "depthwise" in weight.path else shape[:-1])
            weight.assign(rng.normal(size=shape) * np.sqrt(1.5 / reads))
        elif str(weight.dtype) == "float32":
            weight.assign(rng.uniform(-0.2, 0.2, shape) + ("gamma" in weight.path))
    return model


@pytest.mark.parametrize("network", NETWORKS, ids=lambda each: each.__name__)
def test_a_dense_network_is_one_layer(network):
    model = filled(network(weights=None, input_shape=(SIDE, SIDE, 3), classes=7))
    fused = strip(model, fuse=True)
    assert [type(layer).__name__ for layer in fused.layers] == ["InputLayer", "FusedGraph"]
    bright = 255 if any(isinstance(each, LAYERS.Rescaling) for each in model.layers) else 1
    x = np.random.default_rng(4).uniform(0, bright, (2, SIDE, SIDE, 3)).astype("float32")
    same(fused(x), model(x), 1e-5)
