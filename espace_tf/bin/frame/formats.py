"""The formats that networks are written in, by name."""

from collections.abc import Sequence

from espace_tf.config import require_runtime

# What `export_tflite` calls them; the others are no TensorFlow Lite files.
QUANTIZATIONS = {"float32": None, "float16": "float16", "dynamic": "dynamic"}
QUANTIZATIONS |= {"int8": "int8", "full_int8": "full_int8"}
SAVED_MODEL, ONNX = "saved_model", "onnx"


def check(names: Sequence[str], dataset: str | None) -> None:
    """Raises ValueError or ImportError unless these can be written.

    Args:
        names: of formats.
        dataset: what --dataset says.
    """
    known = (*QUANTIZATIONS, SAVED_MODEL, ONNX)
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(
            f"--formats must list some of {', '.join(known)}. Received: {unknown[0]!r}"
        )
    for name in ("int8", "full_int8"):
        if name in names and dataset is None:
            raise ValueError(f"--formats={name} needs --dataset")
    if set(names) & set(QUANTIZATIONS):
        require_runtime("litert")
    if ONNX in names:
        require_runtime("onnxruntime")


def file_name(name: str) -> str:
    """The name of the file, or folder, of a format.

    Example:
        >>> file_name("float32"), file_name("int8")
        ('model.tflite', 'model.int8.tflite')
    """
    if name == SAVED_MODEL:
        return name
    if name == ONNX:
        return "model.onnx"
    return "model.tflite" if name == "float32" else f"model.{name}.tflite"
