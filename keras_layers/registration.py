"""The layers are known to tf_keras whenever tf_keras is imported, which is left to the user.

tf_keras finds the classes of .h5 files in its registry only, and offers no other way in.
"""

import importlib
import sys
from importlib.machinery import ModuleSpec, PathFinder

LEGACY = "espace_tf.keras_layers.legacy"


class _TfKerasFinder:
    """Finds tf_keras, and nothing else, as Python does; its import ends with that of LEGACY."""

    @staticmethod
    def find_spec(name: str, path=None, target=None) -> ModuleSpec | None:
        """Python asks this of every module that is imported for the first time."""
        spec = PathFinder.find_spec(name) if name == "tf_keras" else None
        if spec is not None:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                importlib.import_module(LEGACY)

            spec.loader.exec_module = exec_module
        return spec


def register() -> None:
    """Registers the layers in tf_keras: now if it is imported, else once it is."""
    if "tf_keras" in sys.modules:
        importlib.import_module(LEGACY)
    else:
        sys.meta_path.insert(0, _TfKerasFinder)
