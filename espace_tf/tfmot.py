"""Pruning, clustering and quantization-aware training of compressed tf_keras models.

With tensorflow-model-optimization (tfmot), whose own calls do the work: this module tells it what
the layers of this package are. Imported only when asked for; importing it does not change which
Keras `tf.keras` is.
"""

import contextlib
import importlib
import os
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import tensorflow as tf

from espace_tf.checks import check_count, require
from espace_tf.data.batches import batches, named_inputs
from espace_tf.keras_layers import legacy
from espace_tf.network import graph
from espace_tf.network.copies.legacy_copy import legacy_copy
from espace_tf.rewriting.strip import fold

_SWITCH = "TF_USE_LEGACY_KERAS"


def _import_tfmot() -> Any:
    """tfmot, which on import asks TensorFlow for Keras 2, in this process and in all it starts."""
    require("tfmot", "tensorflow_model_optimization")
    before = os.environ.get(_SWITCH)
    tf.keras.layers  # noqa: B018  once it is read, TensorFlow's choice is made
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of what it imports itself
            return importlib.import_module("tensorflow_model_optimization")
    finally:
        os.environ.pop(_SWITCH, None)
        if before is not None:
            os.environ[_SWITCH] = before


_tfmot = _import_tfmot()
_quantizers = _tfmot.quantization.keras.quantizers
_NORM = legacy.tf_keras.layers.BatchNormalization
_BATCH = 32  # images at once that ranges are found on
_LAYERS = (legacy.MaskedConv2D, legacy.DecomposedConv2D)
for _layer in _LAYERS:  # tfmot clusters subclasses of its own class only
    _tfmot.clustering.keras.ClusterableLayer.register(_layer)


class _Weights(_quantizers.LastValueQuantizer):
    """8 bits, symmetric.

    Args:
        by_channel: a range for each output channel.
        flat: the kernel becomes [1, taps, channels, filters], as a convolution over a table has it:
            the converter refuses to reshape what is quantized by channel.
    """

    def __init__(self, by_channel: bool, flat: bool):
        super().__init__(num_bits=8, per_axis=by_channel, symmetric=True, narrow_range=True)
        self.flat = flat

    def __call__(self, inputs, training, weights, **kwargs):
        """The quantized kernel."""
        if self.flat:
            inputs = tf.reshape(inputs, [1, -1, *inputs.shape[-2:]])
        return super().__call__(inputs, training, weights, **kwargs)

    def build(self, tensor_shape, name, layer):
        """The variables of the ranges, kept in the wrapper `layer`."""
        if not self.per_axis:
            return super().build(tensor_shape, name, layer)
        return {
            f"{end}_var": layer.add_weight(
                name=f"{name}_{end}",
                shape=(tensor_shape[-1],),
                initializer=tf.constant_initializer(6.0 if end == "max" else -6.0),
                trainable=False,
            )
            for end in ("min", "max")
        }

    def get_config(self):
        """Everything that the constructor takes."""
        return {"by_channel": self.per_axis, "flat": self.flat}


class _Values(_quantizers.MovingAverageQuantizer):
    """8 bits, one range, a moving average of what was seen."""

    def __init__(self, place: str):
        super().__init__(num_bits=8, per_axis=False, symmetric=False, narrow_range=False)
        self.place = place

    def build(self, tensor_shape, name, layer):
        """The variables of the range, with names of their own: a wrapper may hold two of these."""
        return super().build(tensor_shape, f"{self.place}_{name}", layer)

    def get_config(self):
        """Everything that the constructor takes."""
        return {"place": self.place}


class ConvolutionQuantizeConfig(_tfmot.quantization.keras.QuantizeConfig):
    """How `MaskedConv2D` and `DecomposedConv2D` are quantized: kernels, what lies between, outputs.

    Kernels have a range for each output channel. The tensor between the two convolutions is
    quantized as well; without that a file computes both in float.
    """

    _KNOWN = ("linear", "relu", "swish", "sigmoid", "tanh")

    def get_weights_and_quantizers(self, layer):
        """The kernels; those of groups, which are split, with one range."""
        tables = layer.reads_tables()
        return [
            (weight, _Weights(by_channel=layer.groups == 1, flat=flat))
            for weight, flat in zip(layer.get_prunable_weights(), tables, strict=True)
        ]

    def get_activations_and_quantizers(self, layer):
        """What lies between two convolutions, and the activation where tfmot knows it."""
        linear = legacy.tf_keras.activations.linear
        found = [(linear, _Values("between"))] * self._has_between(layer)
        return found + [(layer.activation, _Values("output"))] * self._is_known(layer)

    def set_quantize_weights(self, layer, quantize_weights):
        """Puts the quantized kernels in place."""
        layer.int8 = True
        for (name, _), weight in zip(
            layer.get_clusterable_weights(), quantize_weights, strict=True
        ):
            setattr(layer, name, weight)

    def set_quantize_activations(self, layer, quantize_activations):
        """Puts the quantized activations in place."""
        given = list(quantize_activations)
        if self._has_between(layer):
            layer.between = given.pop(0)
        if given:
            layer.activation = given.pop(0)

    def get_output_quantizers(self, layer):
        """The output, where its activation is one that tfmot does not know."""
        return [] if self._is_known(layer) else [_Values("output")]

    def get_config(self):
        """Nothing to choose."""
        return {}

    def _has_between(self, layer) -> bool:
        return len(layer.get_clusterable_weights()) > 1

    def _is_known(self, layer) -> bool:
        inner = getattr(layer.activation, "activation", layer.activation)
        return getattr(inner, "__name__", "") in self._KNOWN


class IdentityQuantizeConfig(_tfmot.quantization.keras.QuantizeConfig):
    """Of a layer that hands on what it gets: nothing is quantized."""

    def _none(self, layer):
        return []

    def _nothing(self, layer, quantized):
        del layer, quantized  # AutoGraph wants a body

    get_weights_and_quantizers = get_activations_and_quantizers = get_output_quantizers = _none
    set_quantize_weights = set_quantize_activations = _nothing

    def get_config(self):
        """Nothing to choose."""
        return {}


_CONFIGS = (ConvolutionQuantizeConfig, IdentityQuantizeConfig)


def from_keras(model: Any) -> Any:
    """A Keras 3 model, compressed or not, in tf_keras, where tfmot can work on it.

    Args:
        model: a Functional or Sequential Keras 3 model that has been built, without models inside,
            of layers that tf_keras has as well and of this package's convolutions.

    Returns:
        A tf_keras model with the same layers, names and weights, not compiled.

    Raises:
        TypeError: no Keras 3 model.
        ValueError: a model inside the model, or a layer or an argument that tf_keras does not have.

    Example:
        >>> small = espace_tf.apply(model, espace_tf.Plan.uniform(model, rank_ratio=0.5))
        >>> same = espace_tf.tfmot.from_keras(small)
        >>> bool(np.allclose(same(images), small(images), atol=1e-5))
        True
    """
    library = graph.library(model)
    if library is legacy.tf_keras:
        raise TypeError("model must be a Keras 3 model. Received: a tf_keras model, which stays so")
    return legacy_copy(model, legacy.tf_keras)


def quantize_annotate(model: Any) -> Any:
    """A copy of a compressed tf_keras model for `tfmot.quantization.keras.quantize_apply`.

    Batch norms and ReLUs after layers of ours are folded into these first; tfmot does so with
    layers of Keras itself.

    Args:
        model: a Functional or Sequential tf_keras model without models inside.

    Returns:
        The model with every layer annotated, with the weights that it has.

    Raises:
        TypeError: no tf_keras model.
        ValueError: tfmot's, of a model inside a model.

    Example:
        >>> import tf_keras
        >>> import tensorflow_model_optimization as tfmot
        >>> inputs = tf_keras.Input((16, 16, 3))
        >>> outputs = tf_keras.layers.Conv2D(8, 3, padding="same", activation="relu")(inputs)
        >>> model = tf_keras.Model(inputs, outputs)
        >>> small = espace_tf.apply(model, espace_tf.Plan.uniform(model, rank_ratio=0.5))
        >>> annotated = espace_tf.tfmot.quantize_annotate(small)
        >>> with espace_tf.tfmot.quantize_scope():
        ...     quantized = tfmot.quantization.keras.quantize_apply(annotated)
    """
    library = graph.library(model)
    if library is not legacy.tf_keras:
        raise TypeError(
            "model must be a tf_keras model, as tensorflow-model-optimization takes no other. "
            f"Received: a {library.__name__} model; espace_tf.tfmot.from_keras(model) makes one"
        )
    copy = fold(model, lambda layer: isinstance(layer, _LAYERS))

    def annotated(layer):
        config = None
        if isinstance(layer, _LAYERS):
            config = ConvolutionQuantizeConfig()
        elif isinstance(layer, library.layers.Identity):
            config = IdentityQuantizeConfig()
        if config is None:
            return layer
        return _tfmot.quantization.keras.quantize_annotate_layer(layer, config)

    own = library.models.clone_model(copy, clone_function=annotated)
    return _tfmot.quantization.keras.quantize_annotate_model(own)


def calibrate(model: Any, data: Any, *, images: int = 256) -> None:
    """Begins quantization-aware training with the ranges that images have, in place.

    tfmot lets all ranges of activations begin at [-6, 6] and move a thousandth of the way in each
    step: without this it takes thousands of steps until they fit.

    Args:
        model: what `quantize_apply` returned.
        data: typical images, arrays or a tf.data.Dataset of batches, as for `compress`; labels are
            not used.
        images: how many are looked at, at most.

    Raises:
        TypeError: no tf_keras model.
        ValueError: a model without ranges, or data that it does not take.

    Example:
        >>> import tf_keras
        >>> import tensorflow_model_optimization as tfmot
        >>> model = tf_keras.Sequential([tf_keras.Input((16, 16, 3)), tf_keras.layers.Conv2D(8, 3)])
        >>> annotated = espace_tf.tfmot.quantize_annotate(model)
        >>> with espace_tf.tfmot.quantize_scope():
        ...     quantized = tfmot.quantization.keras.quantize_apply(annotated)
        >>> espace_tf.tfmot.calibrate(quantized, np.random.rand(32, 16, 16, 3).astype("float32"))
    """
    if graph.library(model) is not legacy.tf_keras:
        raise TypeError("model must be a tf_keras model. Received: one of Keras 3")
    check_count(images, "images")
    mean = _Mean()
    swaps = [swap for layer in model.layers for swap in _moving(layer, mean)]
    if not swaps:
        raise ValueError(
            "model must be one that tfmot.quantization.keras.quantize_apply returned. Received: "
            f"{model.name!r}, which has no ranges"
        )
    norms = [each for each in model.submodules if isinstance(each, _NORM) and each.trainable]
    with contextlib.ExitStack() as put_back:
        for swap in swaps:
            put_back.enter_context(swap)
        for norm in norms:  # which normalize as at inference then
            norm.trainable = False
            put_back.callback(setattr, norm, "trainable", True)
        for x, _ in batches(data, images, _BATCH, inputs=named_inputs(model)):
            mean.batches += 1
            model(x, training=True)


class _Mean:
    """Quantizes as tfmot's moving average does, but with the mean of the ranges so far."""

    batches = 0

    def __call__(self, inputs: tf.Tensor, training: bool, weights: dict, **_: Any) -> tf.Tensor:
        for end, bound in (("min_var", tf.reduce_min), ("max_var", tf.reduce_max)):
            found = bound(tf.concat([tf.reshape(inputs, [-1]), [0.0]], 0))
            weights[end].assign_add((found - weights[end]) / self.batches)
        return tf.quantization.fake_quant_with_min_max_vars(
            inputs, weights["min_var"], weights["max_var"]
        )


def _moving(layer: Any, mean: _Mean) -> Iterator[Any]:
    """Contexts that put `mean` in the place of a layer's moving averages."""
    for each in getattr(layer, "_quantize_activations", ()):
        if isinstance(each.quantizer, _quantizers.MovingAverageQuantizer):
            yield mock.patch.object(each, "quantizer", mean)
    for each in getattr(layer, "_output_quantizers", ()):
        if isinstance(each, _quantizers.MovingAverageQuantizer):
            yield mock.patch.object(layer, "_output_quantizers", [mean])


def quantize_scope() -> Any:
    """The scope in which tfmot and tf_keras know the layers of this package and their quantization.

    For `quantize_apply` and for loading what was quantized.
    """
    known = {each.__name__: each for each in (*_CONFIGS, *_LAYERS)}
    return _tfmot.quantization.keras.quantize_scope(known)
