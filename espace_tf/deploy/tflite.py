"""Between Keras models and TensorFlow Lite files: names, conversion, what is inside, running it."""

import keyword
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.checks import require
from espace_tf.deploy import flatbuffer
from espace_tf.deploy.inference import save, traced
from espace_tf.kernels import reference
from espace_tf.network import graph

# Quantizations with ranges that come from data.
INTEGERS = ("int8", "full_int8")


def convert(
    model: Any,
    *,
    quantize: str | None = None,
    examples: list[list[np.ndarray]] | None = None,
    tried: list[np.ndarray] | None = None,
    named: Any = None,
    custom: bool = False,
) -> bytes:
    """The content of a TensorFlow Lite file for a model as it is, batch size open.

    Args:
        model: a functional or sequential Keras 3 or tf_keras model.
        quantize: as for `export_tflite`.
        examples: batches of inputs, each a list with one array per model input; "int8" and
            "full_int8" need them.
        tried: a batch that the model runs on, of whose size it is tried again, to know the reason,
            if a model that leaves the size of its inputs open cannot be converted.
        named: a model whose inputs and outputs give those of the file their names; None: the model.
        custom: whether functions of the trace may become custom operators.

    Raises:
        ValueError: the model holds something that has no built-in operator.
    """
    shapes = [tensor.shape for tensor in model.inputs]
    try:
        options = {"named": named, "custom": custom}
        return _convert(model, shapes, quantize, examples, **options)
    except _ConversionError as error:
        text = str(error)
        open_size = any(None in shape[1:] for shape in shapes)
        if tried is not None and open_size and _converts(model, [a.shape for a in tried]):
            known = " and ".join(str((None, *array.shape[1:])) for array in tried)
            raise ValueError(
                f"model {model.name!r} cannot be exported to TensorFlow Lite while it leaves the "
                f"height and width of its inputs open: {_missing(text)}. With inputs of shape "
                f"{known} it can: build it with an Input of the size that it will run on, and give "
                "it the weights of this one by set_weights, or use export_saved_model"
            ) from error
        raise ValueError(
            f"model {model.name!r} cannot be exported to TensorFlow Lite: {_missing(text)}. "
            f"{_remedy(text)}, or use export_saved_model."
        ) from error


class _ConversionError(Exception):
    """What TensorFlow's converter says, which raises bare Exception's children."""


def _convert(
    model: Any,
    shapes: list[Any],
    quantize: str | None,
    examples: Any,
    named: Any = None,
    custom: bool = False,
) -> bytes:
    inputs, outputs = input_names(named or model), output_names(named or model)
    token = reference.SHORT_INDICES.set(True)
    try:
        function = traced(model, inputs, outputs, shapes)
    finally:
        reference.SHORT_INDICES.reset(token)
    with tempfile.TemporaryDirectory() as folder:
        # Saving only the variables that the function reads works for both libraries, keeps the
        # names of inputs and outputs as a signature, and prints nothing.
        save(tf.Module(), folder, function)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        converter.allow_custom_ops = custom
        _set_quantization(converter, quantize, inputs, examples)
        with warnings.catch_warnings():
            # The converter warns of its own parts: nothing that the caller could change.
            warnings.simplefilter("ignore")
            try:
                return converter.convert()
            except Exception as error:
                raise _ConversionError(str(error) or repr(error)) from error


def _converts(model: Any, shapes: list[Any]) -> bool:
    try:
        return bool(_convert(model, shapes, None, None))
    except _ConversionError:
        return False


def operators(content: bytes) -> tuple[str, ...]:
    """Names of the operators in a TensorFlow Lite file, sorted; custom ones as CUSTOM:name."""
    classes = flatbuffer.schema()
    names = {
        code: name for name, code in vars(classes.BuiltinOperator).items() if isinstance(code, int)
    }
    file = classes.Model.GetRootAsModel(content, 0)
    found = set()
    for index in range(file.OperatorCodesLength()):
        operator = file.OperatorCodes(index)
        # Files of before version 3a hold the code in the deprecated byte alone.
        name = names[max(operator.BuiltinCode(), operator.DeprecatedBuiltinCode())]
        custom = operator.CustomCode()
        found.add(name if custom is None else f"CUSTOM:{custom.decode()}")
    return tuple(sorted(found))


def input_names(model: Any) -> list[str]:
    """The signature's name of every input of a model, in the order of `model.inputs`."""
    return _distinct(graph.input_names(model), "input")


def output_names(model: Any) -> list[str]:
    """The signature's name of every output, in the order of `model.outputs`.

    The keys of a dictionary, joined where there are several inside one another; else the names of
    the layers.
    """
    given = graph.structure(model, "output")
    if isinstance(given, Mapping):
        return _distinct(_keys(given), "output")
    # Keras 3's sequential models do not name their output.
    return _distinct(list(getattr(model, "output_names", [model.layers[-1].name])), "output")


def _keys(structure: Any, before: str = "") -> list[str]:
    """The way to each tensor of a structure, in the order in which TensorFlow flattens it."""
    if isinstance(structure, Mapping):
        parts = [(key, structure[key]) for key in sorted(structure)]
    elif isinstance(structure, list | tuple):
        parts = list(enumerate(structure))
    else:
        return [before.removesuffix("_")]
    return [name for key, part in parts for name in _keys(part, f"{before}{key}_")]


def _distinct(names: list[str], stem: str) -> list[str]:
    """Names that signatures take: ASCII letters, digits and underscores, a letter first, no word
    of Python, no two alike but for their case.
    """
    cleaned = [re.sub(r"[^A-Za-z0-9_]", "_", name) for name in names]
    cleaned = [
        name
        if name[:1].isalpha() and name != "self" and not keyword.iskeyword(name)
        else f"{stem}_{name.strip('_')}".rstrip("_")
        for name in cleaned
    ]
    alike = len({name.lower() for name in cleaned}) < len(cleaned)
    return [f"{stem}_{index}" for index in range(len(names))] if alike else cleaned


def _set_quantization(
    converter: Any, quantize: str | None, names: list[str], examples: Any
) -> None:
    if quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "full_int8":
        converter.inference_input_type = converter.inference_output_type = tf.int8
    if quantize in INTEGERS:
        # An operator without an int8 version stays in float32.
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
            tf.lite.OpsSet.TFLITE_BUILTINS,
        ]
        converter.representative_dataset = lambda: (
            dict(zip(names, batch, strict=True)) for batch in examples
        )


def _missing(log: str) -> str:
    """Which operations have no TensorFlow Lite counterpart, out of a long conversion log."""
    foreign = set(re.findall(r"'tf\.(\w+)' op", log)) | set(re.findall(r"\bFlex(\w+)", log))
    if foreign:
        return f"there is no built-in operator for its {', '.join(sorted(foreign))}"
    return next((line.strip() for line in log.splitlines() if line.strip()), "no reason is given")


def _remedy(log: str) -> str:
    if "CheckNumerics" in log:
        return "Call tf.debugging.disable_check_numerics() first"
    return "Replace the layers that do this"


def run_function(
    model: Any, path: str | os.PathLike, delegates: Sequence[Any] = ()
) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """A written file as a function from the model's inputs to its outputs.

    Where those of the file are integers they are made of floats, and back, by the file's scales.
    Inputs of other shapes get an interpreter of their own: one of LiteRT 2.3 that was resized
    between two runs may compute a composite's built-in operators wrongly once, because its XNNPACK
    keeps what it had set up for the former shapes where a buffer comes to lie at the same address.
    """
    require("litert", "ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    inputs, outputs = input_names(model), output_names(model)
    options = {"model_path": str(path), "experimental_delegates": list(delegates)}
    signature = Interpreter(**options).get_signature_runner()
    taken, given = signature.get_input_details(), signature.get_output_details()
    ran: list[tuple[int, ...]] = []

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        nonlocal signature, ran
        shapes = [array.shape for array in arrays]
        if ran and ran != shapes:
            signature = Interpreter(**options).get_signature_runner()
        ran = shapes
        feed = {
            name: _to_integers(array, taken[name])
            for name, array in zip(inputs, arrays, strict=True)
        }
        found = signature(**feed)
        return [_to_floats(found[name], given[name]) for name in outputs]

    return run


def _to_integers(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """What a file's input takes for values; they themselves where it takes floats."""
    scale, zero = tensor["quantization"]
    if not scale or tensor["dtype"] == np.float32:
        return values
    limits = np.iinfo(tensor["dtype"])
    steps = np.rint(values / np.float32(scale)) + zero
    return np.clip(steps, limits.min, limits.max).astype(tensor["dtype"])


def _to_floats(values: np.ndarray, tensor: dict[str, Any]) -> np.ndarray:
    """What a file's output means."""
    scale, zero = tensor["quantization"]
    if not scale or tensor["dtype"] == np.float32:
        return values
    return (values.astype(np.float32) - zero) * np.float32(scale)


def prepare(
    model: Any,
    content: bytes,
    arrays: list[np.ndarray],
    *,
    threads: int | None = None,
    delegates: Sequence[Any] = (),
) -> tuple[Any, list[int]]:
    """A file's content in an interpreter with its inputs set, and the numbers of its outputs."""
    require("litert", "ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    options = {"num_threads": threads, "experimental_delegates": list(delegates)}
    interpreter = Interpreter(model_content=content, **options)
    inputs, outputs = _tensor_indices(model, interpreter)
    for index, array in zip(inputs, arrays, strict=True):
        interpreter.resize_tensor_input(index, array.shape)
    interpreter.allocate_tensors()
    for index, array in zip(inputs, arrays, strict=True):
        interpreter.set_tensor(index, array)
    return interpreter, outputs


def _tensor_indices(model: Any, interpreter: Any) -> tuple[list[int], list[int]]:
    """Of the inputs and the outputs, in the model's order.

    The signature goes out of scope here: while it lives, the interpreter does not allocate.
    """
    signature = interpreter.get_signature_runner()
    inputs, outputs = signature.get_input_details(), signature.get_output_details()
    return (
        [inputs[name]["index"] for name in input_names(model)],
        [outputs[name]["index"] for name in output_names(model)],
    )
