"""Faster trained Keras CNNs: low-rank convolutions and spatial impact masks (ESPACE).

The public names, and nothing else. `pipeline` holds `compress`, `config` every knob, `callbacks`
and `schedules` what users put into their own `fit`; `race` lets plans of one speed compete, `kept`
keeps what a long call has finished, `progress` shows it; `checks` words errors, `files` writes
whole files. Each other library that networks come from, run in or are trained with has a module of
its name: `litert`, `tfmot`.
"""

import sys as _sys
from importlib import import_module as _import_module
from importlib.util import find_spec as _find_spec
from pathlib import Path as _Path

# In a checkout keras_layers/ and kernels/ lie beside this folder; a wheel has them inside.
if not (_Path(__file__).parent / "kernels").is_dir():
    __path__.append(str(_Path(__file__).parent.parent))

from espace_tf.config import EspaceConfig, EspaceWarning
from espace_tf.planning.planner import UnreachableSpeedWarning, plan
from espace_tf.records.analysis import Analysis
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import Plan

__all__ = [
    "Analysis",
    "EspaceConfig",
    "EspaceWarning",
    "LayerPlan",
    "Plan",
    "UnreachableSpeedWarning",
    "plan",
]

# `python -m espace_tf.bin.NAME` or espace-NAME: a command imports what it needs when its work
# begins, so that --help and mistaken flags are answered at once.
_words = _sys.orig_argv[1:]
_is_command = _sys.argv[:1] == ["-m"] and any(word.startswith("espace_tf.bin.") for word in _words)
_is_command |= bool(_sys.argv) and _Path(_sys.argv[0]).name.startswith("espace-")

# A saved analysis can be planned on a machine without TensorFlow; everything else needs it. Keras
# finds the layers in a saved model because this import registers them.
if not _is_command and _find_spec("tensorflow") and _find_spec("keras"):
    from espace_tf import callbacks, keras_layers, litert, schedules
    from espace_tf import kernels as ops
    from espace_tf.analysis.analyze import analyze
    from espace_tf.deploy.export_onnx import export_onnx
    from espace_tf.deploy.export_saved_model import export_saved_model
    from espace_tf.deploy.export_tflite import export_tflite
    from espace_tf.pipeline import compress, compress_in_stages
    from espace_tf.planning.sweep import SweepRow, sweep
    from espace_tf.reconstruction.reconstruct import reconstruct
    from espace_tf.reports.html import report
    from espace_tf.rewriting.apply import apply
    from espace_tf.rewriting.strip import strip
    from espace_tf.timing.benchmark import benchmark
    from espace_tf.training.batch_norms import reestimate_batch_norm
    from espace_tf.training.fine_tune import fine_tune

    __all__ += [
        "SweepRow",
        "analyze",
        "apply",
        "benchmark",
        "callbacks",
        "compress",
        "compress_in_stages",
        "export_onnx",
        "export_saved_model",
        "export_tflite",
        "fine_tune",
        "keras_layers",
        "litert",
        "ops",
        "reconstruct",
        "reestimate_batch_norm",
        "report",
        "schedules",
        "strip",
        "sweep",
    ]


def __getattr__(name: str):
    # Not before it is asked for: it imports tensorflow-model-optimization.
    if name != "tfmot":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _import_module("espace_tf.tfmot")
