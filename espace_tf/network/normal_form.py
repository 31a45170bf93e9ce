"""The form in which a model of Keras 3 is read: one graph of layers, as far as it can be told.

What a class of the user's computes is traced with symbolic tensors: its layers then stand in the
graph and can be replaced. A separable convolution becomes the two layers that it consists of.
"""

import inspect
from collections import Counter
from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf

from espace_tf.network import graph
from espace_tf.network.copies import cloning
from espace_tf.network.copies.borrowed import compiled_like
from espace_tf.network.copies.likeness import again
from espace_tf.network.layer_rules import UNKNOWN, kin, rule

_LIBRARIES = ("keras", "tf_keras", "espace_tf")


def normal(model: Any) -> Any:
    """The model as one graph, with the weights that it has; itself where there is nothing to do.

    A subclassed model that was called once becomes a Functional one on its own layers. In any other
    model layers of the user's classes with convolutions inside give way to what they call. Either
    stays as it is where symbolic tensors do not pass (TensorFlow's functions take
    none), where it has weights beside those of its layers, adds losses, computes in half precision
    or something else in training.

    Args:
        model: of Keras 3; one of tf_keras stays as it is.

    Example:
        >>> layers = [keras.Input((8, 8, 3)), keras.layers.SeparableConv2D(4, 3)]
        >>> [type(layer).__name__ for layer in normal(keras.Sequential(layers)).layers]
        ['DepthwiseConv2D', 'Conv2D']
    """
    if graph.library(model) is not keras:
        return model
    if not graph.is_container(model):
        model = _as_graph(model) or model
    if not graph.is_container(model) or not getattr(model, "inputs", None):
        return model
    return _divided(_opened(model))


def without_graph(model: Any) -> str:
    """What to do about a model whose call cannot be told, as part of a sentence."""
    parts = [
        name
        for name, value in vars(model).items()
        if graph.is_container(value) and any(map(_convolves, graph.layers(value).values()))
    ]
    if parts:
        each = "; ".join(f"model.{name} = compress(model.{name}, ...)" for name in parts)
        return f"compress its parts by themselves: {each}"
    return "call it once on data, and write its call with Keras's layers and keras.ops alone"


def _convolves(layer: Any) -> bool:
    return kin(layer).convolution


def _as_graph(model: Any) -> Any | None:
    """A subclassed model as a Functional one, on inputs of the sizes that it was called on."""
    shapes = getattr(model, "_build_shapes_dict", None) or {}
    if len(shapes) != 1:
        return None
    (shape,) = shapes.values()
    inputs = keras.tree.map_shape_structure(lambda each: keras.Input(each[1:]), shape)
    outputs = _traced(model, inputs)
    return None if outputs is None else _model(inputs, outputs, model)


def _opened(model: Any) -> Any:
    """A model of the same layers with what those of the user's classes call in their place.

    Nothing is copied: a copy of such a layer would give what is inside other names every time.
    """
    while any(map(_is_block, graph.layers(model).values())):
        opened = set()

        def call(layer: Any, *args: Any, opened: set = opened, **kwargs: Any) -> Any:
            found = _traced(layer, *args, **kwargs) if _is_block(layer) else None
            if found is None:
                # One operation is one call, see `graph.number`.
                layer = layer if isinstance(layer, keras.layers.Layer) else again(layer)
                return layer(*args, **kwargs)
            opened.add(layer)
            return found

        try:
            functional = getattr(model, "_functional", None) or model
            inputs = keras.tree.map_structure(
                lambda tensor: cloning.input_like(keras, tensor), functional.input
            )
            outputs = functional._run_through_graph(inputs, call_fn=call)
        except Exception:  # a layer of the user's that takes no symbolic tensors in other places
            break
        made = _model(inputs, outputs, model) if opened else None
        if made is None:
            break
        model = made
    return model


def _model(inputs: Any, outputs: Any, model: Any) -> Any | None:
    """A Functional model compiled as another is; None where two of its layers have one name."""
    try:
        made = keras.Model(inputs, outputs, name=model.name)
    except ValueError:
        return None
    made._trainable = model._trainable
    return compiled_like(made, model)


def _is_block(layer: Any) -> bool:
    """Whether a layer is of a class of the user's and has convolutions inside."""
    if type(layer).__module__.split(".")[0] in _LIBRARIES or rule(layer) is not UNKNOWN:
        return False
    return any(map(_convolves, graph.every_layer(layer)))


def _traced(layer: Any, *args: Any, **kwargs: Any) -> Any | None:
    """What a layer's call gives for symbolic tensors; None where that does not tell all of it."""
    own = layer._trainable_variables or layer._non_trainable_variables
    if own or layer.compute_dtype != layer.variable_dtype:
        return None
    takes = "training" in inspect.signature(layer.call).parameters and "training" not in kwargs
    found, kinds = None, []
    for training in (True, None) if takes else (None,):
        options = {**kwargs, "training": training} if takes else kwargs
        try:
            found = layer.call(*args, **options)
            kinds.append(_operations(found, (args, kwargs)))
        except Exception:  # whatever the user's code makes of tensors without values
            return None
    if kinds[0] != kinds[-1] or layer._losses:
        return None
    for tensor in tf.nest.flatten(found):
        tensor._sparse = (
            False  # as Keras takes a dense tensor times a number for one, see `is_sparse`
        )
    return found


def _operations(outputs: Any, inputs: Any) -> Counter:
    """The classes of the operations between symbolic tensors."""
    seen, found = set(map(id, tf.nest.flatten(inputs))), Counter()
    waiting = tf.nest.flatten(outputs)
    while waiting:
        tensor = waiting.pop()
        if id(tensor) not in seen:
            seen.add(id(tensor))
            history = tensor._keras_history
            found[type(history.operation).__name__] += 1
            waiting += history.operation._inbound_nodes[history.node_index].input_tensors
    return found


def _divided(model: Any) -> Any:
    """A copy of a model with a depthwise and a 1 x 1 convolution in the place of each separable.

    The second one has the name of the layer, whose output it gives.
    """
    known = {
        path: layer
        for path, layer in graph.layers(model).items()
        if rule(layer).kind == "separable" and _is_divisible(layer)
    }
    if not known:
        return model
    made = cloning.clone(
        model, lambda path, layer: _halves(layer) if path in known else None, compiled=False
    )
    new = graph.layers(made)
    for path, layer in known.items():
        first, *others = layer.get_weights()
        cloning.assign(new[f"{path}_depthwise"], [first])
        cloning.assign(new[path], others)
    return compiled_like(made, model)


def _is_divisible(layer: Any) -> bool:
    """Whether two stock layers say all that it is."""
    plain = layer.data_format == "channels_last" and layer.built
    return plain and not isinstance(layer.activation, keras.layers.Layer)


def _halves(layer: Any) -> list[Any]:
    options: Mapping[str, Any] = {
        "dtype": layer.dtype_policy,
        "trainable": layer.trainable,
        "data_format": layer.data_format,  # not what Keras is set to meanwhile
    }
    first = keras.layers.DepthwiseConv2D(
        layer.kernel_size,
        strides=layer.strides,
        padding=layer.padding,
        depth_multiplier=layer.depth_multiplier,
        dilation_rate=layer.dilation_rate,
        use_bias=False,
        depthwise_regularizer=layer.depthwise_regularizer,
        depthwise_constraint=layer.depthwise_constraint,
        name=f"{layer.name}_depthwise",
        **options,
    )
    second = keras.layers.Conv2D(
        layer.filters,
        1,
        use_bias=layer.use_bias,
        activation=layer.activation,
        kernel_regularizer=layer.pointwise_regularizer,
        kernel_constraint=layer.pointwise_constraint,
        bias_regularizer=layer.bias_regularizer,
        bias_constraint=layer.bias_constraint,
        activity_regularizer=layer.activity_regularizer,
        name=layer.name,
        **options,
    )
    return [first, second]
