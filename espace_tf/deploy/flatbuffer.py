"""TensorFlow Lite files as objects that can be changed: read, put together, written."""

from types import ModuleType
from typing import Any

import flatbuffers
import numpy as np

from espace_tf.checks import require

# Constants begin at a cache line: the runtime maps the file, and its kernels read them there.
_ALIGNMENT = 64


def schema() -> ModuleType:
    """The classes of the file format; those whose names end in T are the objects."""
    require("litert", "ai_edge_litert")
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def read(content: bytes) -> Any:
    """A file's content as a ModelT."""
    return schema().ModelT.InitFromPackedBuf(content, 0)


def write(model: Any) -> bytes:
    """The content of a file of a ModelT."""
    builder = _Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class _Builder(flatbuffers.Builder):
    """Aligns what the format wants aligned, which the generated classes do not say."""

    def CreateNumpyVector(self, x):  # noqa: N802
        """The offset of a vector; one of bytes is a constant."""
        if x.dtype == np.uint8:
            self.Prep(_ALIGNMENT, x.size)
        return super().CreateNumpyVector(x)


def operator_code(model: Any, *, builtin: int | None = None, custom: str | None = None) -> int:
    """The number of an operator in a ModelT, which has it afterwards."""
    made = schema().OperatorCodeT()
    made.builtinCode = schema().BuiltinOperator.CUSTOM if custom else builtin
    made.deprecatedBuiltinCode = min(made.builtinCode, 127)
    made.customCode, made.version = custom, 1
    return _code(model, made)


def _code(model: Any, wanted: Any) -> int:
    def key(code: Any) -> tuple:
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        name = code.customCode
        return number, name.encode() if isinstance(name, str) else name, code.version

    known = [key(code) for code in model.operatorCodes]
    if key(wanted) in known:
        return known.index(key(wanted))
    model.operatorCodes.append(wanted)
    return len(known)


def drop_unused_codes(model: Any) -> None:
    """Takes the operators that none of a ModelT's subgraphs calls out of its list."""
    calls = [call for subgraph in model.subgraphs for call in subgraph.operators]
    used = sorted({call.opcodeIndex for call in calls})
    for call in calls:
        call.opcodeIndex = used.index(call.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[number] for number in used]


def constant(model: Any, values: np.ndarray, name: str, known: dict[bytes, int]) -> Any:
    """A TensorT of constant values; their buffer is the one of the same bytes, if there is one.

    Args:
        known: buffers by their bytes; a new one is added.
    """
    kind, content = values.dtype.name.upper(), values.tobytes()
    if content not in known:
        buffer = schema().BufferT()
        buffer.data = np.frombuffer(content, np.uint8)
        known[content] = len(model.buffers)
        model.buffers.append(buffer)
    tensor = schema().TensorT()
    tensor.type, tensor.shape = getattr(schema().TensorType, kind), list(values.shape)
    tensor.buffer, tensor.name = known[content], name
    return tensor


def add_subgraph(model: Any, other: Any, known: dict[bytes, int]) -> int:
    """Gives a ModelT the first subgraph of another one, whose objects it then holds.

    Args:
        known: buffers of `model` by their bytes; those of `other` are added.

    Returns:
        Its number in `model`.
    """
    codes = [_code(model, code) for code in other.operatorCodes]
    buffers = [_adopted(model, buffer, known) for buffer in other.buffers]
    subgraph = other.subgraphs[0]
    for tensor in subgraph.tensors:
        tensor.buffer = buffers[tensor.buffer]
    for operator in subgraph.operators:
        operator.opcodeIndex = codes[operator.opcodeIndex]
    model.subgraphs.append(subgraph)
    return len(model.subgraphs) - 1


def _adopted(model: Any, buffer: Any, known: dict[bytes, int]) -> int:
    if buffer.data is None or not len(buffer.data):
        return 0  # by the format's definition the empty one
    content = np.asarray(buffer.data, np.uint8).tobytes()
    if content not in known:
        known[content] = len(model.buffers)
        model.buffers.append(buffer)
    return known[content]
