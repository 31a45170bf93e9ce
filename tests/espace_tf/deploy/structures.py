"""Models with every structure of inputs and outputs that Keras takes, and inputs for each."""

import keras
import numpy as np
import tensorflow as tf

SEED = 3
_SHAPES = {"a": (8, 8, 2), "b": (6, 6, 2), "c": (3,)}


def _inputs(**options):
    return {name: keras.Input(shape, name=name, **options) for name, shape in _SHAPES.items()}


def _array(tensor) -> tf.Tensor:
    generator = np.random.default_rng(SEED)
    size = tensor.shape[0] or 2
    dtype = tf.as_dtype(tensor.dtype)
    values = generator.random((size, *tensor.shape[1:])) * (1 if dtype.is_floating else 5)
    return tf.constant(values.astype(dtype.as_numpy_dtype))


def _case(inputs, outputs):
    model = keras.Model(inputs, outputs)
    return model, keras.tree.map_structure(_array, inputs)


def _conv(x):
    return keras.layers.Conv2D(3, 3)(x)


def _dense(x):
    return keras.layers.Dense(2)(x)


def _dictionary():
    x = _inputs()
    outputs = {"z": _conv(x["a"]), "y": _conv(x["b"]), "x": _dense(x["c"])}
    return _case({name: x[name] for name in "cab"}, outputs)


def _nested_dictionary():
    x = _inputs()
    inputs = {"maps": {"a": x["a"], "b": x["b"]}, "c": x["c"]}
    return _case(inputs, {"o": [_conv(x["a"]), _conv(x["b"])], "p": {"c": _dense(x["c"])}})


def _nested_list():
    x = _inputs()
    return _case([x["a"], [x["b"], x["c"]]], [_conv(x["a"]), [_conv(x["b"]), _dense(x["c"])]])


def _tuple():
    x = _inputs()
    return _case((x["a"], x["b"]), (_conv(x["a"]), _conv(x["b"])))


def _single_list():
    x = keras.Input((8, 8, 2))
    return _case([x], [_conv(x)])


def _fixed_batch():
    x = keras.Input(batch_shape=(4, 8, 8, 2))
    return _case(x, _conv(x))


def _other_types():
    tokens, image = keras.Input((5,), dtype="int32"), keras.Input((8, 8, 2), dtype="uint8")
    maps = _conv(keras.layers.Rescaling(1 / 255)(image))
    return _case([tokens, image], [keras.layers.Embedding(7, 3)(tokens), maps, maps > 0])


def _passed_through():
    x = _inputs()
    return _case([x["a"], x["c"]], [x["c"], _conv(x["a"])])


def _twice():
    x = keras.Input((8, 8, 2))
    maps = _conv(x)
    return _case(x, {"one": maps, "other": maps})


def _unused():
    x = _inputs()
    return _case([x["a"], x["c"]], _conv(x["a"]))


STRUCTURES = {
    "dictionary": _dictionary,
    "nested dictionary": _nested_dictionary,
    "nested list": _nested_list,
    "tuple": _tuple,
    "single list": _single_list,
    "fixed batch": _fixed_batch,
    "other types": _other_types,
    "passed through": _passed_through,
    "twice": _twice,
    "unused": _unused,
}
