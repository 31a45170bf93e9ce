"""Commands called in this process, for the tests of this folder."""

import importlib

from absl import flags
from absl.testing import flagsaver

from espace_tf.bin.frame import command

NAMES = ("train", "compress", "fine_tune", "evaluate", "export", "benchmark", "report")
MODULES = {name: importlib.import_module(f"espace_tf.bin.{name}") for name in NAMES}


def call(name: str, *arguments: object) -> int:
    """A command's main() with these flags, which are reset afterwards."""
    with flagsaver.flagsaver():
        try:
            rest = flags.FLAGS([name, *map(str, arguments)])
        finally:
            flags.FLAGS.mark_as_parsed()
        return command.main(MODULES[name].COMMAND, rest)
