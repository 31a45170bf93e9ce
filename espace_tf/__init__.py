"""Faster trained Keras CNNs: low-rank convolutions and spatial impact masks (ESPACE)."""

from importlib.util import find_spec as _find_spec
from pathlib import Path as _Path

# In a checkout keras_layers/ and kernels/ lie beside this folder; a wheel has them inside.
if not (_Path(__file__).parent / "kernels").is_dir():
    __path__.append(str(_Path(__file__).parent.parent))

from espace_tf.analysis import Analysis, analyze
from espace_tf.config import EspaceConfig, EspaceWarning
from espace_tf.planning import LayerPlan, Plan, UnreachableSpeedWarning, plan

__all__ = [
    "Analysis",
    "EspaceConfig",
    "EspaceWarning",
    "LayerPlan",
    "Plan",
    "UnreachableSpeedWarning",
    "analyze",
    "plan",
]

# A saved analysis can be planned on a machine without TensorFlow; everything else needs it. Keras
# finds the layers in a saved model because this import registers them.
if _find_spec("tensorflow") is not None and _find_spec("keras") is not None:
    from espace_tf import callbacks, keras_layers, schedules
    from espace_tf import kernels as ops
    from espace_tf.benchmarking import benchmark
    from espace_tf.export import export_saved_model, export_tflite
    from espace_tf.finetuning import fine_tune, reestimate_batch_norm
    from espace_tf.pipeline import compress, compress_in_stages
    from espace_tf.reporting import report
    from espace_tf.rewriting import apply, strip
    from espace_tf.sweeping import SweepRow, sweep

    __all__ += [
        "SweepRow",
        "apply",
        "benchmark",
        "callbacks",
        "compress",
        "compress_in_stages",
        "export_saved_model",
        "export_tflite",
        "fine_tune",
        "keras_layers",
        "ops",
        "reestimate_batch_norm",
        "report",
        "schedules",
        "strip",
        "sweep",
    ]
