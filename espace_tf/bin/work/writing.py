"""Networks written for deployment, and what is known of each file."""

from pathlib import Path
from typing import Any

from espace_tf.bin.frame.formats import ONNX, QUANTIZATIONS, SAVED_MODEL
from espace_tf.deploy.export_onnx import export_onnx
from espace_tf.deploy.export_saved_model import export_saved_model
from espace_tf.deploy.export_tflite import export_tflite


def write(model: Any, path: Path, name: str, data: Any) -> dict[str, Any]:
    """Writes one format.

    Args:
        model: the Keras model.
        path: of the file or folder; what is there is replaced.
        name: of the format.
        data: typical images, arrays or batches; None if there are none.

    Returns:
        "file", "bytes", "difference" and "dense_bytes", the last two None where they are not known.
    """
    if name == SAVED_MODEL:
        export_saved_model(model, path)
        size = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
        return {"file": path.name, "bytes": size, "difference": None, "dense_bytes": None}
    if name == ONNX:
        found = export_onnx(model, path)
    else:
        options = {"quantize": QUANTIZATIONS[name], "representative_data": data}
        found = export_tflite(model, path, **options)
    return {
        "file": path.name,
        "bytes": found.bytes,
        "difference": found.max_difference,
        "dense_bytes": found.dense_bytes,
    }
