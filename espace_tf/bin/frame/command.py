"""What all commands share: flags checked, errors in a line, one table at the end, exit statuses.

Light: a command imports TensorFlow when its work begins, not for --help or a mistaken flag.
"""

import contextlib
import functools
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from absl import app, flags, logging

from espace_tf.bin.frame.quiet import without_chatter
from espace_tf.bin.frame.run import DryRun, Run
from espace_tf.bin.inputs import models

# Where in a graph an error came up, as TensorFlow puts it into messages.
_NODES = re.compile(
    r"\{\{.*?\}\}|\[\[.*?\]\]|\[Op:\w+\]( name:)?"
    r"|Error in user-defined function .* with iterator: [\w:]+: "
)
DONE, NOT_USABLE, INTERRUPTED = 0, 1, 130
_STATUSES = """
Exit status: 0 done; 1 a flag, a file, the model or the data is not usable, said in one line; 130
interrupted. --verbosity=1 adds where, and what TensorFlow tells of its own.
"""


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: "train"; it is started as espace-train and as `python -m espace_tf.bin.train`.
        description: what --help says, before the exit statuses.
        flags: the names of the flags that it takes.
        needs: those that must be given.
        check: raises ValueError for flags that do not go together.
        work: does everything else and returns the summary, JSON-able.
        table: what is printed of a summary, a `rich.table.Table`.
        reads: whether a text given as --model or --original must be that of a model's file.
    """

    name: str
    description: str
    flags: tuple[str, ...]
    needs: tuple[str, ...]
    check: Callable[[], None]
    work: Callable[[Run], dict[str, Any]]
    table: Callable[[dict[str, Any]], Any]
    reads: Callable[[str], bool] = lambda path: True


def start(command: Command) -> None:
    """Reads the command line and ends the process."""
    sys.modules["__main__"].__doc__ = command.description + _STATUSES  # absl's --help shows it
    for name in command.flags:
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    app.run(functools.partial(main, command))


def main(command: Command, argv: list[str]) -> int:
    """Does what the command says; returns the exit status.

    Args:
        command: which.
        argv: the program, and what was left on the command line after flags.
    """
    chatty, run = flags.FLAGS["verbosity"].present, None
    try:
        _check(command, argv)
        run = Run(command.name, command.flags)
        with contextlib.nullcontext() if chatty else without_chatter(), _warnings_in_lines(command):
            _work(command, run, chatty)
    except DryRun:
        pass
    except KeyboardInterrupt:
        print(f"espace-{command.name}: interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    except _errors() as error:
        logging.debug("The error came from here:", exc_info=True)
        message = _broken_file() or str(error) or type(error).__name__
        message = " ".join(_NODES.sub("", message).split())
        print(f"espace-{command.name}: error: {message}", file=sys.stderr)
        if run is not None:
            run.forget()
        return NOT_USABLE
    return DONE


def _work(command: Command, run: Run, chatty: bool) -> None:
    from rich.console import Console

    summary = run.finished()
    if summary is None:
        _prepare(chatty)
        summary = command.work(run)
        run.finish(summary)
    else:
        print(f"{run.output} holds these results already; --overwrite makes them anew.")
    Console().print(command.table(summary))
    print(f"Results in {run.output}." if run.is_chief else "The first process writes the results.")


def _check(command: Command, argv: list[str]) -> None:
    """What absl's own checks of single flags do not cover; before anything slow is done."""
    if len(argv) > 1:
        raise ValueError(f"arguments must be flags. Received: {' '.join(argv[1:])}")
    values = flags.FLAGS
    check_flags(command)
    for name in command.needs:
        if values[name].value is None:
            raise ValueError(f"--{name} must be given")
    for name in ("model", "original"):
        path = values[name].value
        if name in command.flags and path is not None and command.reads(path):
            models.check(path, f"--{name}")
    command.check()


def check_flags(command: Command) -> None:
    """Raises ValueError if a flag was given that is another command's."""
    for module, group in flags.FLAGS.flags_by_module_dict().items():
        foreign = [flag.name for flag in group if flag.present and flag.name not in command.flags]
        if foreign and module.startswith("espace_tf."):
            raise ValueError(f"--{foreign[0]} is no flag of espace-{command.name}; see --help")


def _prepare(chatty: bool) -> None:
    """Threads and seeds; TensorFlow takes threads only before it computes anything."""
    import keras
    import tensorflow as tf

    from espace_tf.timing.runtimes import set_threads

    if not chatty:
        logging.set_verbosity(logging.WARNING)
        tf.get_logger().setLevel("WARNING")
    set_threads(flags.FLAGS.threads)
    keras.utils.set_random_seed(flags.FLAGS.seed)


@contextlib.contextmanager
def _warnings_in_lines(command: Command):
    """The library's own warnings go to the standard error as they come, one a line."""
    from espace_tf.config import EspaceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", EspaceWarning)
        usual = warnings.showwarning

        def show(message, category, *rest):
            if issubclass(category, EspaceWarning):
                warn(command.name, str(message))
            else:
                usual(message, category, *rest)

        warnings.showwarning = show
        yield


def warn(name: str, message: str) -> None:
    """One line on the standard error.

    Args:
        name: of the command.
        message: what is to be known.
    """
    print(f"espace-{name}: warning: {message}", file=sys.stderr)


def _broken_file() -> str | None:
    """What is wrong with a file of --dataset=folder:PATH; None if nothing is."""
    streams = sys.modules.get("espace_tf.bin.inputs.broken_files")
    found = None if streams is None else streams.find()
    return None if found is None else f"--dataset holds a file that is no whole image: {found}"


def _errors() -> tuple[type[Exception], ...]:
    """What flags, files, data and models that are not usable raise."""
    own = (ValueError, TypeError, OSError, ImportError, RuntimeError, ArithmeticError, MemoryError)
    tensorflow = sys.modules.get("tensorflow")
    return own if tensorflow is None else (*own, tensorflow.errors.OpError)
