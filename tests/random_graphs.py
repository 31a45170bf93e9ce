"""Random Keras graphs of all known layers, line by line as a person would write them."""

import os
from dataclasses import dataclass, field

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf

from espace_tf.keras_layers import DecomposedConv2D, MaskedConv2D

NAMES = {
    "keras": keras,
    "layers": keras.layers,
    "Input": keras.Input,
    "Model": keras.Model,
    "Sequential": keras.Sequential,
    "MaskedConv2D": MaskedConv2D,
    "DecomposedConv2D": DecomposedConv2D,
}


class Random(np.random.RandomState):
    """Draws plain Python values, which print as they are written in code."""

    def int(self, low, high):
        return int(self.randint(low, high + 1))

    def pick(self, *options):
        return options[self.randint(len(options))]

    def chance(self, share):
        return bool(self.rand() < share)


def call(name, *arguments, **options):
    """The code of a constructor's call; of options that are None nothing."""
    given = [repr(each) for each in arguments]
    given += [f"{key}={value!r}" for key, value in options.items() if value is not None]
    return f"{name}({', '.join(given)})"


def activation(r):
    known = ("relu", "relu", "relu6", "swish", "tanh", "hard_swish", "gelu", "softmax")
    return r.pick(None, None, None, *known, "softplus")


def window(r, shape):
    """Kernel, strides, padding and dilation for the axes of a map."""
    kernel = tuple(r.int(1, 3) for _ in shape[:-1])
    far = r.pick(*["plain"] * 4, "strides", "dilation")
    found = {"padding": r.pick("same", "same", "valid")}
    if far != "plain":
        found["strides" if far == "strides" else "dilation_rate"] = 2
    return kernel, found


def convolution(name, filters=True, groups=False):
    def make(r, shape):
        kernel, options = window(r, shape)
        kernel = kernel[0] if "1D" in name else kernel
        if "Transpose" in name:
            options.pop("dilation_rate", None)
        options |= {"activation": activation(r), "use_bias": r.pick(None, None, False)}
        if name.startswith(("Depthwise", "Separable")):
            options["depth_multiplier"] = r.pick(None, None, 2)
        count = r.int(1, 5)
        if groups and r.chance(0.1):
            options["groups"], count = shape[-1], shape[-1] * r.pick(1, 2)
        first = (count, kernel) if filters else (kernel,)
        return call(f"layers.{name}", *first, **options)

    return make


def compressed(name):
    def make(r, shape):
        kernel, options = window(r, shape)
        options |= {"padding": "same", "activation": r.pick(None, "relu", "relu6", "tanh")}
        strides = options.get("strides", 1)
        size = -(-shape[0] // strides) * -(-shape[1] // strides)
        if r.chance(0.7):
            options["positions"] = range(r.int(0, min(2, size - 1)), size, r.int(1, 4))
        more = (r.int(1, 2), r.pick("vertical", "horizontal")) if name[0] == "D" else ()
        return call(name, r.int(1, 5), kernel, *more, **options)

    return make


def pooling(name):
    def make(r, shape):
        size = (r.int(1, 3), r.int(1, 3))
        return call(f"layers.{name}", size, r.pick(1, 1, 2, None), r.pick("same", "valid"))

    return make


def plain(name, *arguments, **options):
    return lambda r, shape: call(f"layers.{name}", *arguments, **options)


def batch_norm(r, shape):
    axis = r.pick(*[None] * 5, 1)
    return call("layers.BatchNormalization", axis=axis, scale=r.pick(None, None, False))


def fits(slopes, shape):
    """Whether a PReLU's slopes, 1 where axes share them, are those of inputs of a shape."""
    return len(slopes) == len(shape) and all(
        slope in (1, size) for slope, size in zip(slopes, shape, strict=True)
    )


def around(name, most):
    def make(r, shape):
        sides = tuple((r.int(0, most), r.int(0, most)) for _ in range(2))
        return call(f"layers.{name}", sides)

    return make


def upsampling(r, shape):
    size = (r.int(1, 2), r.int(1, 2))
    smooth = r.pick(*[None] * 5, "bilinear")
    return call("layers.UpSampling2D", size, interpolation=smooth)


def reshaped(r, shape):
    *size, channels = shape
    options = [(int(np.prod(size)), channels), (*size[:-1], -1), (-1, 1)]
    if len(shape) > 1:
        options += [(*size[1:], size[0], channels), (1, *shape)]
    if len(shape) < 4:
        options.append((*size, 1, channels))
    return call("layers.Reshape", options[r.randint(len(options))])


def permuted(r, shape):
    return call("layers.Permute", tuple((r.permutation(len(shape)) + 1).tolist()))


def normalization(r, shape):
    mean, variance = ([round(r.rand() + 0.5, 2) for _ in range(shape[-1])] for _ in range(2))
    return call("layers.Normalization", mean=mean, variance=variance, invert=r.pick(None, True))


def prelu(r, shape):
    return call("layers.PReLU", shared_axes=r.pick(list(range(1, len(shape))) or None, None))


def rescaling(r, shape):
    scale = r.pick(0.5, [round(r.rand() + 0.5, 2) for _ in range(shape[-1])])
    return call("layers.Rescaling", scale, r.pick(0.0, -0.25))


def arithmetic(r, shape):
    number = r.pick(0.5, 2, -1.25)
    code = r.pick("x + {}", "{} - x", "x - {}", "{} * x", "x / {}", "{} / (x * x + 1)", "x * x - x")
    return f"(lambda x: {code.format(number)})"


def operation(r, shape):
    names = ("relu", "relu6", "sigmoid", "tanh", "silu", "hard_sigmoid", "gelu", "elu")
    return f"keras.ops.{r.pick(*names, 'leaky_relu', 'softmax')}"


def global_pooling(name):
    return lambda r, shape: call(f"layers.{name}", keepdims=r.pick(None, True))


# By class: the rank of what a layer reads, batch included (None: any), and the code of one.
MAKERS = {
    "Conv2D": (4, convolution("Conv2D", groups=True)),
    "DepthwiseConv2D": (4, convolution("DepthwiseConv2D", False)),
    "SeparableConv2D": (4, convolution("SeparableConv2D")),
    "Conv2DTranspose": (4, convolution("Conv2DTranspose")),
    "Conv1D": (3, convolution("Conv1D")),
    "DepthwiseConv1D": (3, convolution("DepthwiseConv1D", False)),
    "SeparableConv1D": (3, convolution("SeparableConv1D")),
    "Conv1DTranspose": (3, convolution("Conv1DTranspose")),
    "Conv3D": (5, convolution("Conv3D")),
    "Conv3DTranspose": (5, convolution("Conv3DTranspose")),
    "MaskedConv2D": (4, compressed("MaskedConv2D")),
    "DecomposedConv2D": (4, compressed("DecomposedConv2D")),
    "Dense": (None, lambda r, shape: call("layers.Dense", r.int(1, 5), activation=activation(r))),
    "BatchNormalization": (None, batch_norm),
    "Identity": (None, plain("Identity")),
    "Dropout": (None, plain("Dropout", 0.5)),
    "SpatialDropout1D": (3, plain("SpatialDropout1D", 0.5)),
    "SpatialDropout2D": (4, plain("SpatialDropout2D", 0.5)),
    "SpatialDropout3D": (5, plain("SpatialDropout3D", 0.5)),
    "AlphaDropout": (None, plain("AlphaDropout", 0.5)),
    "GaussianDropout": (None, plain("GaussianDropout", 0.5)),
    "GaussianNoise": (None, plain("GaussianNoise", 0.5)),
    "Activation": (None, lambda r, s: call("layers.Activation", activation(r) or "linear")),
    "ReLU": (None, lambda r, s: call("layers.ReLU", r.pick(None, None, 6.0, 1.5))),
    "LeakyReLU": (None, plain("LeakyReLU", 0.2)),
    "PReLU": (None, prelu),
    "ELU": (None, lambda r, s: call("layers.ELU", r.pick(1.0, 0.3))),
    "Softmax": (None, lambda r, s: call("layers.Softmax", axis=r.pick(None, None, 1))),
    "Rescaling": (None, rescaling),
    "Normalization": (None, normalization),
    "Flatten": (None, plain("Flatten")),
    "Reshape": (None, reshaped),
    "Permute": (None, permuted),
    "Add": (None, plain("Add")),
    "Multiply": (None, plain("Multiply")),
    "Concatenate": (None, plain("Concatenate")),
    "ZeroPadding2D": (4, around("ZeroPadding2D", 2)),
    "Cropping2D": (4, around("Cropping2D", 1)),
    "UpSampling2D": (4, upsampling),
    "MaxPooling2D": (4, pooling("MaxPooling2D")),
    "AveragePooling2D": (4, pooling("AveragePooling2D")),
    "GlobalMaxPooling2D": (4, global_pooling("GlobalMaxPooling2D")),
    "GlobalAveragePooling2D": (4, global_pooling("GlobalAveragePooling2D")),
}
# Layers without a rule, and what is no layer.
MORE = {
    "UnitNormalization": (None, plain("UnitNormalization")),
    "arithmetic": (None, arithmetic),
    "operation": (None, operation),
}
JOINING = ("Add", "Concatenate", "Multiply")
OFTEN = ("Conv2D", "Add", "ReLU", "BatchNormalization", "UpSampling2D", "ZeroPadding2D", "Conv2D")


@dataclass(frozen=True)
class Line:
    """`name = code`, with {} in the code for each of the names that it reads."""

    name: str
    code: str
    reads: tuple[str, ...] = ()

    def __str__(self):
        return f"{self.name} = {self.code.format(*self.reads)}"


@dataclass
class Graph:
    """Lines of code; the names of the inputs and outputs of the model that they make."""

    lines: list[Line] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)

    def code(self):
        made = f"model = Model([{', '.join(self.inputs)}], [{', '.join(self.outputs)}])"
        return "\n".join([*map(str, self.lines), made])

    def build(self, seed):
        """The model, with random weights of every kind, those of batch norms included."""
        names = dict(NAMES)
        exec(self.code(), names)
        return randomized(names["model"], seed)


def randomized(model, seed):
    r = np.random.default_rng(seed)
    for weight in model.weights:
        if "seed" not in weight.path:
            low = 0.5 if "variance" in weight.path else -0.6
            weight.assign(r.uniform(low, low + 1.2, weight.shape))
    return model


class Grower:
    """Draws a graph, line by line; what Keras refuses is left out."""

    def __init__(self, seed):
        self.r, self.graph, self.values = Random(seed), Graph(), dict(NAMES)
        self.layers: list[str] = []  # that may be called again

    def graph_of(self, steps):
        r = self.r
        for _ in range(r.pick(1, 1, 1, 2)):
            shape = (r.int(4, 9), r.int(4, 9), r.int(1, 4))
            self.graph.inputs.append(self.add("x", call("Input", shape)))
        pool = self.grow(list(self.graph.inputs), steps)
        read = {name for line in self.graph.lines for name in line.reads}
        ends = [name for name in pool if name not in read]
        ends += [name for name in pool if name not in ends and r.chance(0.1)]
        self.graph.outputs = ends or pool[-1:]
        return self.graph

    def add(self, letter, code, reads=()):
        """A new line; None if Keras refuses it."""
        line = Line(f"{letter}{len(self.graph.lines)}", code, tuple(reads))
        try:
            exec(str(line), self.values)
        except (ValueError, TypeError, ZeroDivisionError, tf.errors.OpError):
            return None
        shape = getattr(self.values[line.name], "shape", ())
        if any(size is None or size < 1 for size in shape[1:]) or np.prod(shape[1:]) > 3000:
            return None
        self.graph.lines.append(line)
        return line.name

    def grow(self, pool, steps):
        """Adds lines that read what is in the pool; returns the pool with their results."""
        for _ in range(steps):
            kind = self.r.rand()
            if kind < 0.08:
                made = self.nested(pool)
            elif kind < 0.16 and self.layers:
                made = self.again(pool)
            else:
                made = self.layer(pool)
            if made:
                pool.append(made)
        return pool

    def again(self, pool):
        """Another call of a layer or model, if it fits: some take any shape, and fail later."""
        layer, given = self.r.choice(self.layers), self.recent(pool)
        called, shape = self.values[layer], self.values[given].shape
        if isinstance(called, keras.Model) and called.input_shape != shape:
            return None
        if isinstance(called, keras.layers.PReLU) and not fits(called.alpha.shape, shape[1:]):
            return None
        if isinstance(called, keras.layers.Normalization) and len(called.input_mean) != shape[-1]:
            return None
        return self.add("t", f"{layer}({{}})", [given])

    def recent(self, pool):
        return pool[-1] if self.r.chance(0.5) else pool[self.r.randint(len(pool))]

    def layer(self, pool):
        given = self.recent(pool)
        shape = tuple(self.values[given].shape)[1:]
        name, make = self.maker(len(shape) + 1)
        code = make(self.r, shape)
        if name in JOINING:
            same = 1 if name == "Concatenate" else 0
            once = (*[1] * (len(shape) - 1), shape[-1])  # one position, for all of them
            alike = [
                each
                for each in pool
                if self.values[each].shape[1 : -1 if same else None]
                == shape[: -1 if same else None]
                or (not same and self.values[each].shape[1:] == once)
            ]
            reads = [given, *(alike[self.r.randint(len(alike))] for _ in range(self.r.int(1, 2)))]
            return self.add("t", f"{code}([{', '.join(['{}'] * len(reads))}])", reads)
        if self.r.chance(0.12):
            shared = self.add("l", code)
            made = self.add("t", f"{shared}({{}})", [given]) if shared else None
            self.layers += [shared] if made else []
            return made
        return self.add("t", f"{code}({{}})", [given])

    def maker(self, rank):
        fits = [n for n, (wanted, _) in {**MAKERS, **MORE}.items() if wanted in (None, rank)]
        often = [name for name in OFTEN if name in fits]
        name = self.r.pick(*(often if often and self.r.chance(0.45) else fits))
        return name, {**MAKERS, **MORE}[name][1]

    def nested(self, pool):
        """A model inside the model, called once or twice."""
        given = self.recent(pool)
        shape = tuple(self.values[given].shape)[1:]
        outside, self.layers = self.layers, []
        if self.r.chance(0.4):
            made = [self.maker(len(shape) + 1) for _ in range(2)]
            fixed = (*JOINING, "Rescaling")  # which takes numbers for other channels than it gets
            inside = [make(self.r, shape) for name, make in made if name not in fixed]
            model = self.add("m", f"Sequential([{', '.join([call('Input', shape), *inside])}])")
        else:
            first = self.add("x", call("Input", shape))
            inner = self.grow([first], self.r.int(1, 4))
            model = self.add("m", "Model({}, {})", (first, inner[-1]))
        self.layers = outside
        made = self.add("t", f"{model}({{}})", [given]) if model else None
        if made and self.r.chance(0.3):
            self.layers.append(model)
        return made


def needed(graph):
    """The graph without the lines that its outputs do not need."""
    used, lines = set(graph.outputs), []
    for line in reversed(graph.lines):
        if line.name in used:
            lines.insert(0, line)
            used |= {*line.reads, line.code.split("(")[0]}
    return Graph(lines, [name for name in graph.inputs if name in used], graph.outputs)


def graph_of(seed):
    """The graph of a seed."""
    r = Random(seed)
    return needed(Grower(seed).graph_of(r.int(3, 14)))
