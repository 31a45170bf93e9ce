"""A stretch of a network that runs as one native operation at inference."""

import contextvars
import math
from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from espace_tf.keras_layers.texts import read_words, write_words
from espace_tf.kernels.fused import FusedGraphCall
from espace_tf.kernels.loader import operations_now
from espace_tf.kernels.program_reader import Program

# Set while a model is traced for a file that holds its fused graphs as something else: called with
# the layer and its inputs for its outputs.
STAND_IN: contextvars.ContextVar[Callable | None] = contextvars.ContextVar(
    "espace_tf_stand_in", default=None
)


@keras.saving.register_keras_serializable("espace_tf")
class FusedGraph(keras.layers.Layer):
    """A Functional model that runs, at inference in float32, as one native operation.

    Wherever that operation cannot run the inner model does, with the same results to float
    rounding: in training, in exported files, with XLA, on GPUs, without the native binary. The
    weights are those of the inner model's layers, read in every call. The operation takes groups of
    images through the whole stretch, so that what lies between its layers stays in the cache. It
    holds the maps' sizes; the batch is free. `espace_tf.strip` makes these layers.

    Input shape: that of the inner model's input, or a list of its inputs' shapes.
    Output shape: that of the inner model's output, or a list of its outputs' shapes.

    Args:
        model: a Functional Keras 3 model of float32 layers.
        program: integers, the words of the program (see `espace_tf.kernels.program`), or as the
            configuration has them.
        weights: for each weight of the program (name of an inner layer, name of its weight), or one
            number for all its floats; of normalizations and rescalings "scale" and "shift", what
            they multiply and add at inference.
        **kwargs: `name`, `trainable` of a Keras layer.

    Raises:
        TypeError: model is not a Keras 3 model.
        ValueError: a program or weights that the model does not fit.

    Example:
        >>> fused = espace_tf.strip(small)
        >>> [type(layer).__name__ for layer in fused.layers]
        ['InputLayer', 'FusedGraph']
    """

    def __init__(self, model, program, weights: Sequence[Sequence[str] | float], **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        if not isinstance(model, keras.Model) or not model.inputs:
            raise TypeError(f"model must be a Functional Keras 3 model. Received: {model!r}")
        self.model = model
        self.program = Program.read(read_words(program))
        self.sources = tuple(map(_source, weights))
        self._check()
        self.input_spec = self.model.input_spec
        self._native = FusedGraphCall(self.program, self.program_weights, self._plain)

    def _check(self) -> None:
        """Raises unless the program is one of this model."""
        found = [_floats(tensor) for tensor in self.model.inputs]
        if found != list(self.program.inputs):
            raise ValueError(
                f"program takes inputs of {list(self.program.inputs)} floats per image; the inputs "
                f"of model {self.model.name!r} have {found}"
            )
        found = [(_floats(tensor), tensor.shape[-1]) for tensor in self.model.outputs]
        wanted = [(rows * channels, channels) for rows, channels in self.program.outputs]
        if found != wanted:
            raise ValueError(
                f"program gives outputs of {wanted} (floats, channels) per image; the outputs of "
                f"model {self.model.name!r} have {found}"
            )
        if len(self.sources) != len(self.program.weights):
            raise ValueError(
                f"program takes weights of {list(self.program.weights)} floats; weights names "
                f"{len(self.sources)} of them"
            )
        found = [math.prod(weight.shape) for weight in self.program_weights()]
        if found != list(self.program.weights):
            raise ValueError(
                f"program takes weights of {list(self.program.weights)} floats; weights names such "
                f"of {found}"
            )

    def build(self, input_shape):
        """The inner model is built already."""
        self.built = True

    def program_weights(self) -> list[tf.Tensor]:
        """The program's weights, from the inner model's."""
        layers = {layer.name: layer for layer in self.model.layers}
        named = (source[0] for source in self.sources if isinstance(source, tuple))
        unknown = sorted(set(named) - set(layers))
        if unknown:
            raise ValueError(f"weights must name layers of the model. Received: {unknown}")
        return [
            _weight(layers[source[0]], source[1])
            if isinstance(source, tuple)
            else tf.fill([floats], tf.constant(source, tf.float32))
            for source, floats in zip(self.sources, self.program.weights, strict=True)
        ]

    def step_layers(self) -> list[str | None]:
        """Of each step of the program the inner layer that its filter is of, None where none is."""
        names = [source[0] if isinstance(source, tuple) else None for source in self.sources]
        return [None if number < 0 else names[number] for number in self.program.filters]

    def call(self, inputs, training=None):
        """The inner model's output, or a list of its outputs."""
        given = tf.nest.flatten(inputs)
        stand_in = STAND_IN.get()
        operations = None if training else operations_now()
        if stand_in is not None and self._fits(given):
            found = stand_in(self, given)
        elif operations is None or not self._fits(given):
            found = self._plain(*given, training=training)
        else:
            found = self._native(operations, given)
            found = [
                tf.reshape(values, [-1, *tensor.shape[1:]])
                for values, tensor in zip(found, self.model.outputs, strict=True)
            ]
        return found[0] if len(found) == 1 else found

    def _plain(self, *inputs, training=False):
        """The inner model's outputs, as a flat list."""
        arguments = inputs[0] if len(inputs) == 1 else list(inputs)
        return tf.nest.flatten(self.model(arguments, training=training))

    def _fits(self, inputs: Sequence[tf.Tensor]) -> bool:
        """Whether these are inputs that the program was made for."""
        wanted = [tuple(tensor.shape[1:]) for tensor in self.model.inputs]
        alike = [tuple(tensor.shape[1:]) for tensor in inputs if tensor.shape.rank] == wanted
        return alike and all(tensor.dtype == tf.float32 for tensor in inputs)

    def compute_output_spec(self, inputs, training=None):
        """What comes out of symbolic inputs: the inner model's outputs for their batch."""
        batch = tf.nest.flatten(inputs)[0].shape[0]
        specs = [
            keras.KerasTensor((batch, *tensor.shape[1:]), tensor.dtype)
            for tensor in self.model.outputs
        ]
        return specs[0] if len(specs) == 1 else specs

    def get_config(self):
        """Everything that the constructor takes."""
        own = {
            "model": keras.saving.serialize_keras_object(self.model),
            "program": write_words(self.program.words),
            "weights": [
                list(source) if isinstance(source, tuple) else source for source in self.sources
            ],
        }
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config):
        """The layer of a configuration."""
        model = keras.saving.deserialize_keras_object(config["model"])
        return cls(**{**config, "model": model})


def _floats(tensor) -> int:
    """Per image."""
    sizes = tuple(tensor.shape[1:])
    if None in sizes:
        raise ValueError(f"model must have inputs of known size. Received: shape {tensor.shape}")
    return math.prod(sizes)


def _source(given) -> tuple[str, str] | float:
    """Of a weight: (name of a layer, name of its weight), or a number."""
    if isinstance(given, (int, float)):
        return float(given)
    layer, weight = given
    return str(layer), str(weight)


def _weight(layer, name: str) -> tf.Tensor:
    """A layer's weight, or the factor or the offset of a normalization at inference."""
    if isinstance(layer, keras.layers.BatchNormalization):
        scale = tf.math.rsqrt(tf.convert_to_tensor(layer.moving_variance) + layer.epsilon)
        if layer.scale:
            scale = scale * tf.convert_to_tensor(layer.gamma)
        if name == "scale":
            return scale
        shift = -tf.convert_to_tensor(layer.moving_mean) * scale
        return shift + tf.convert_to_tensor(layer.beta) if layer.center else shift
    if isinstance(layer, keras.layers.Normalization):
        mean, variance = (tf.reshape(each, [-1]) for each in (layer.mean, layer.variance))
        deviation = tf.maximum(tf.sqrt(variance), keras.config.epsilon())
        if layer.invert:
            return deviation if name == "scale" else mean
        return 1.0 / deviation if name == "scale" else -mean / deviation
    if isinstance(layer, keras.layers.Rescaling):
        found = layer.scale if name == "scale" else layer.offset
        return tf.reshape(tf.convert_to_tensor(found, tf.float32), [-1])
    weight = getattr(layer, name, None)
    if weight is None:
        raise ValueError(f"weights names {name!r} of layer {layer.name!r}, which has no such one")
    return tf.convert_to_tensor(weight)
