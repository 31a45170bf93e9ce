"""Long benchmarks in steps: results and wall times on disk, so that a killed run goes on."""

import json
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from espace_tf.bin.frame.quiet import without_chatter
from espace_tf.files import atomic_write, output_folder

_EVERY = 5.0  # seconds between two notes of the time spent


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n")


def command(name: str, argv: list[str], work: Callable[[], None]) -> int:
    """Does the work of a benchmark, says in one line what its flags lack; the exit status.

    Args:
        name: of the benchmark.
        argv: the program, and what was left on the command line after flags.
        work: raises ValueError, TypeError or OSError for flags and files that are not usable.
    """
    logging.set_verbosity(logging.ERROR)  # TensorFlow warns of every second trace
    try:
        if len(argv) > 1:
            raise ValueError(f"arguments must be flags. Received: {' '.join(argv[1:])}")
        with without_chatter():
            work()
    except (ValueError, TypeError, OSError) as error:
        logging.debug("The error came from here:", exc_info=True)
        print(f"{name}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


class Steps:
    """The steps of one run, each done once.

    Args:
        folder: where results are kept; made if it is not there.
        settings: what decides the results, JSON-able; a folder begun with others is refused.

    Attributes:
        seconds: wall time of each finished step, over all the processes that worked on it.

    Raises:
        ValueError: the folder holds a run with other settings; the message names the difference.

    Example:
        >>> steps = Steps(Path("out/run"), {"seed": 0})
        >>> steps.run("sum", lambda work: 1 + 1)  # computed once, then read
        2
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]):
        self.folder = output_folder(folder, "--output_dir")
        self.seconds: dict[str, float] = {}
        path = self.folder / "settings.json"
        settings = json.loads(json.dumps(settings))
        if not path.exists():
            write_json(path, settings)
        former = json.loads(path.read_text())
        for name in sorted({*former, *settings}):
            if former.get(name) != settings.get(name):
                raise ValueError(
                    f"--output_dir {str(self.folder)!r} holds a run with --{name}="
                    f"{former.get(name)}. Received: {settings.get(name)}; give another "
                    "--output_dir, or remove that folder to begin anew"
                )

    def run(self, name: str, compute: Callable[[Path], Any]) -> Any:
        """The JSON-able result of a step: read if it was finished before, else computed.

        Args:
            name: of the step, and of its file.
            compute: gets a folder for what it needs to resume, which is removed when it is done.
        """
        path, work = self.folder / f"{name}.json", self.folder / f"{name}.work"
        if not path.exists():
            work.mkdir(exist_ok=True)
            with Stopwatch(work / "seconds.json") as watch:
                result = compute(work)
            write_json(path, {"seconds": watch.seconds, "result": result})
        shutil.rmtree(work, ignore_errors=True)
        stored = json.loads(path.read_text())
        self.seconds[name] = stored["seconds"]
        return stored["result"]


class Stopwatch:
    """Wall time of a block over all processes that ran it: noted on disk every few seconds.

    Args:
        path: of the note.

    Attributes:
        seconds: so far, with those of earlier processes.
    """

    def __init__(self, path: Path):
        self._path, self._done = path, threading.Event()
        self._before = json.loads(path.read_text()) if path.exists() else 0.0
        self._start = 0.0

    @property
    def seconds(self) -> float:
        """Seconds since the block was first entered, without the time when no process ran it."""
        return self._before + time.perf_counter() - self._start

    def __enter__(self) -> "Stopwatch":
        self._start = time.perf_counter()
        self._thread = threading.Thread(target=self._note, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._done.set()
        self._thread.join()

    def _note(self) -> None:
        while not self._done.wait(_EVERY):
            write_json(self._path, self.seconds)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    Example:
        >>> print(markdown(["a", "b"], [["1", "2"]]))
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    lines = [columns, ["---"] * len(columns), *rows]
    joined = ["| " + " | ".join(line) + " |" for line in lines]
    joined[1] = joined[1].replace(" ", "")
    return "\n".join(joined)


def rich_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    """The same table as a `rich.table.Table`."""
    from rich.table import Table

    table = Table(title=title)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def put_table(path: Path, name: str, table: str) -> None:
    """Writes a table into a Markdown file: between its two comments, else as all of it."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if begin in text and end in text:
        before, after = text.split(begin)[0], text.split(end)[1]
        table = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    with atomic_write(path) as temporary:
        temporary.write_text(table.rstrip("\n") + "\n", encoding="utf-8")


def settings_of(flag_values: Any, module: str, leave_out: Sequence[str]) -> dict[str, Any]:
    """The flags that a module defines, by name, but for those that do not decide results."""
    found = {flag.name: flag.value for flag in flag_values.get_flags_for_module(module)}
    return {name: value for name, value in sorted(found.items()) if name not in leave_out}


def speeds(texts: Sequence[str], name: str = "--speedups") -> list[float]:
    """The numbers of a flag that lists speeds.

    Raises:
        ValueError: one is no number above 1.
    """
    found = []
    for text in texts:
        try:
            found.append(float(text))
        except ValueError:
            found.append(0.0)
        if not 1 < found[-1] < float("inf"):
            raise ValueError(f"{name} must be numbers above 1. Received: {text!r}")
    return found
