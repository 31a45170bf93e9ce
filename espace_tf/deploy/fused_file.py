"""TensorFlow Lite files whose fused graphs are operators of their own, with what they stand for.

A fused graph becomes a STABLEHLO_COMPOSITE: an operator that names a subgraph of built-in ones,
which any LiteRT runs in its place, and that the delegate of `espace_tf.litert` claims. The
converter of TensorFlow makes none of a Keras model, so each fused graph is converted by itself, and
its subgraph put into the file of the rest, where a custom operator holds its place. The inputs of
the operator are the words of its program (kernels/litert/stretch.h), the inputs of the fused graph
and its weights, which share their memory in the file with those of the subgraph.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.deploy import flatbuffer, tflite
from espace_tf.keras_layers.fused import STAND_IN, FusedGraph
from espace_tf.network import graph

COMPOSITE, CUSTOM = "espace_tf.fused_graph", "EspaceFusedGraph"
MAGIC = 0x4553504C
_EMPTY_MAP = np.array([0, 0, 1, 0, 0, 36, 1], np.uint8)  # as a flexbuffer


def fused_graphs(model: Any) -> list[FusedGraph]:
    """The fused graphs of a model, each once."""
    return [layer for layer in graph.layers(model).values() if isinstance(layer, FusedGraph)]


def convert(
    model: Any,
    *,
    named: Any = None,
    quantize: str | None = None,
    tried: list[np.ndarray] | None = None,
    custom: bool = False,
) -> bytes:
    """The content of a file for a model with fused graphs.

    Args:
        model: a Keras 3 model as `espace_tf.rewriting.fuse` makes it.
        quantize: None or "float16", which halves the weights.
        named, tried: as for `tflite.convert`.
        custom: whether fused graphs become custom operators, which nothing but the delegate runs.

    Raises:
        ValueError: the model holds something that has no built-in operator.
    """
    layers = fused_graphs(model)
    token = STAND_IN.set(lambda layer, inputs: _place(layers.index(layer), layer, inputs))
    try:
        content = tflite.convert(model, quantize=quantize, tried=tried, named=named, custom=True)
    finally:
        STAND_IN.reset(token)
    file, known = flatbuffer.read(content), {}
    numbers = {f"{CUSTOM}_{index}": index for index in range(len(layers))}
    places = [
        (operator, numbers[name])
        for operator in file.subgraphs[0].operators
        if (name := _custom_name(file, operator)) in numbers
    ]
    for index, layer in enumerate(layers):
        called = [operator for operator, number in places if number == index]
        bodies = None if custom else flatbuffer.read(tflite.convert(layer.model, quantize=quantize))
        _fill(file, layer, called, bodies, known, quantize)
    flatbuffer.drop_unused_codes(file)
    return flatbuffer.write(file)


def _place(index: int, layer: FusedGraph, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
    """A call of what the converter turns into a custom operator of this number."""
    shapes = [tensor.shape[1:] for tensor in layer.model.outputs]
    attributes = 'attr { key: "tfl_fusable_op" value { b: true } }'

    @tf.function(experimental_implements=f'name: "{CUSTOM}_{index}" {attributes}', autograph=False)
    def stand_in(*inputs):
        return [tf.zeros([tf.shape(inputs[0])[0], *shape]) for shape in shapes]

    return stand_in(*inputs)


def _custom_name(file: Any, operator: Any) -> str | None:
    name = file.operatorCodes[operator.opcodeIndex].customCode
    return name.decode() if isinstance(name, bytes) else name


def _fill(
    file: Any,
    layer: FusedGraph,
    operators: list[Any],
    body: Any,
    known: dict[bytes, int],
    quantize: str | None,
) -> None:
    """Makes the operators that hold the place of a fused graph what it is.

    Args:
        body: the ModelT of what it stands for; None: custom operators.
        known: the file's buffers by their bytes.
    """
    if body is not None:
        number = flatbuffer.add_subgraph(file, body, known)
        subgraph = file.subgraphs[number]
        _order(body, layer, subgraph)
    columns, constants = _weights(layer, known, quantize)
    words = np.array([MAGIC, len(columns), *columns, *layer.program.words], np.int32)
    names = [f"{layer.name}/words", *(f"{layer.name}/weight_{i}" for i in range(len(columns)))]
    main = file.subgraphs[0]
    first = len(main.tensors)
    for name, values in zip(names, [words, *constants], strict=True):
        main.tensors.append(flatbuffer.constant(file, values, name, known))
    if body is not None:
        _add_unused(subgraph, main.tensors[first:])
    builtin = flatbuffer.schema().BuiltinOperator.STABLEHLO_COMPOSITE
    kind = {"custom": CUSTOM} if body is None else {"builtin": builtin}
    code = flatbuffer.operator_code(file, **kind)
    for operator in operators:
        operator.opcodeIndex = code
        operator.inputs = [first, *operator.inputs, *range(first + 1, len(main.tensors))]
        operator.customOptions = None
        if body is not None:
            _make_composite(operator, number)


def _make_composite(operator: Any, subgraph: int) -> None:
    classes = flatbuffer.schema()
    options = classes.StableHLOCompositeOptionsT()
    options.name, options.version = COMPOSITE, 1
    options.decompositionSubgraphIndex = subgraph
    options.compositeAttributes = _EMPTY_MAP
    operator.builtinOptions2 = options
    operator.builtinOptions2Type = classes.BuiltinOptions2.StableHLOCompositeOptions


def _order(body: Any, layer: FusedGraph, subgraph: Any) -> None:
    """Puts the inputs and outputs of a converted model into the order of the Keras model's."""
    (signature,) = body.signatureDefs

    def index(entries: Any, names: list[str]) -> list[int]:
        found = {entry.name.decode(): entry.tensorIndex for entry in entries}
        return [found[name] for name in names]

    subgraph.inputs = index(signature.inputs, tflite.input_names(layer.model))
    subgraph.outputs = index(signature.outputs, tflite.output_names(layer.model))


def _add_unused(subgraph: Any, constants: Sequence[Any]) -> None:
    """Gives a subgraph inputs for the constants of its operator, which it has itself."""
    tensors = []
    for constant in constants:
        tensor = flatbuffer.schema().TensorT()
        tensor.type, tensor.shape, tensor.name = constant.type, constant.shape, constant.name
        tensors.append(tensor)
    first = len(subgraph.tensors)
    subgraph.tensors.extend(tensors)
    after = range(first + 1, len(subgraph.tensors))
    subgraph.inputs = [first, *subgraph.inputs, *after]


def _weights(
    layer: FusedGraph, known: dict[bytes, int], quantize: str | None
) -> tuple[list[int], list[np.ndarray]]:
    """The weights as the file has them already, or as the program takes them.

    Returns:
        Of each its columns where it lies transposed, else 0; and its values.
    """
    columns, values = [], []
    for weight in layer.program_weights():
        given = np.asarray(weight, np.float32)
        rows = given.reshape(-1, given.shape[-1])
        types = [np.float16, np.float32] if quantize == "float16" else [np.float32]
        forms = [(width, form.astype(kind)) for kind in types
                 for width, form in ((0, given.ravel()), (rows.shape[1], rows.T))]  # fmt: skip
        found = next((each for each in forms if each[1].tobytes() in known), forms[0])
        columns.append(found[0])
        values.append(np.ascontiguousarray(found[1]))
    return columns, values
