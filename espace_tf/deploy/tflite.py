"""Between Keras models and TensorFlow Lite files: names, conversion, what is inside, running it."""

import os
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf import kernels
from espace_tf.checks import require
from espace_tf.network import graph


def convert(
    model: Any, *, quantize: str | None = None, examples: list[list[np.ndarray]] | None = None
) -> bytes:
    """The content of a TensorFlow Lite file for a model as it is, batch size open.

    Args:
        model: a functional or sequential Keras 3 or tf_keras model.
        quantize: as for `export_tflite`.
        examples: batches of inputs, each a list with one array per model input; "int8" needs them.

    Raises:
        ValueError: the model holds something that has no built-in operator.
    """
    function = _inference_function(model)
    with tempfile.TemporaryDirectory() as folder:
        # Saving only the variables that the function reads works for both libraries, keeps the
        # names of inputs and outputs as a signature, and prints nothing.
        module = tf.Module()
        module.variables_read = list(function.graph.variables)
        tf.saved_model.save(module, folder, signatures=function)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        _set_quantization(converter, quantize, input_names(model), examples)
        with warnings.catch_warnings():
            # The converter warns of its own parts: nothing that the caller could change.
            warnings.simplefilter("ignore")
            try:
                return converter.convert()
            except Exception as error:  # The converter raises bare Exception's children.
                raise ValueError(_conversion_problem(model, error)) from error


def operators(content: bytes) -> tuple[str, ...]:
    """Names of the operators in a TensorFlow Lite file, sorted; custom ones as CUSTOM:name."""
    require("litert", "ai_edge_litert")
    from ai_edge_litert import schema_py_generated as schema

    names = {
        code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)
    }
    file = schema.Model.GetRootAsModel(content, 0)
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
    return _distinct([tensor.name.split(":")[0] for tensor in model.inputs], "input")


def output_names(model: Any) -> list[str]:
    """The signature's name of every output, in the order of `model.outputs`."""
    given = graph.structure(model, "output")
    if isinstance(given, Mapping):
        return _distinct(sorted(given), "output")
    # Keras 3's sequential models do not name their output.
    return _distinct(list(getattr(model, "output_names", [model.layers[-1].name])), "output")


def _distinct(names: list[str], stem: str) -> list[str]:
    """Names as a signature allows them: letters, digits, underscores, no two alike."""
    cleaned = [re.sub(r"\W", "_", name) for name in names]
    cleaned = [name if name[:1].isalpha() else f"{stem}_{name}" for name in cleaned]
    return (
        cleaned if len(set(cleaned)) == len(cleaned) else [f"{stem}_{i}" for i in range(len(names))]
    )


def _inference_function(model: Any) -> Any:
    """The model at inference as a traced function of one named tensor per input."""
    names = input_names(model)
    specs = [
        tf.TensorSpec(tensor.shape, tensor.dtype, name=name)
        for tensor, name in zip(model.inputs, names, strict=True)
    ]
    outputs = output_names(model)

    @tf.function
    def infer(*inputs):
        return dict(zip(outputs, graph.call(model, inputs), strict=True))

    with kernels.plain():  # a file's operators are TensorFlow's own
        return infer.get_concrete_function(*specs)


def _set_quantization(
    converter: Any, quantize: str | None, names: list[str], examples: Any
) -> None:
    if quantize is not None:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        # An operator without an int8 version stays in float32.
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS_INT8,
            tf.lite.OpsSet.TFLITE_BUILTINS,
        ]
        converter.representative_dataset = lambda: (
            dict(zip(names, batch, strict=True)) for batch in examples
        )


def _conversion_problem(model: Any, error: Exception) -> str:
    """Says which operations have no TensorFlow Lite counterpart, out of a long conversion log."""
    text = str(error)
    foreign = set(re.findall(r"'tf\.(\w+)' op", text)) | set(re.findall(r"\bFlex(\w+)", text))
    what = (
        f"it uses {', '.join(sorted(foreign))}, which TensorFlow Lite has no built-in operator for"
        if foreign
        else next((line.strip() for line in text.splitlines() if line.strip()), repr(error))
    )
    return (
        f"model {model.name!r} cannot be exported to TensorFlow Lite: {what}. Replace the layers "
        "that do this, or use export_saved_model."
    )


def run_function(
    model: Any, path: str | os.PathLike
) -> Callable[[list[np.ndarray]], list[np.ndarray]]:
    """A written file as a function from the model's inputs to its outputs."""
    require("litert", "ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    signature = Interpreter(model_path=str(path)).get_signature_runner()
    inputs, outputs = input_names(model), output_names(model)

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        found = signature(**dict(zip(inputs, arrays, strict=True)))
        return [found[name] for name in outputs]

    return run


def prepare(
    model: Any, content: bytes, arrays: list[np.ndarray], *, threads: int | None = None
) -> tuple[Callable[[], None], Callable[[], list[np.ndarray]]]:
    """A file's content, loaded with its inputs set: a call that runs it, one that gives outputs."""
    require("litert", "ai_edge_litert")
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=content, num_threads=threads)
    inputs, outputs = _tensor_indices(model, interpreter)
    for index, array in zip(inputs, arrays, strict=True):
        interpreter.resize_tensor_input(index, array.shape)
    interpreter.allocate_tensors()
    for index, array in zip(inputs, arrays, strict=True):
        interpreter.set_tensor(index, array)

    def read() -> list[np.ndarray]:
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in outputs]

    return interpreter.invoke, read


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
