"""One run of a command: its folder, what a restart needs, its flags and results as files."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from espace_tf.files import atomic_write, checked_path, output_folder

# Flags that change where results go, not what they are.
_ELSEWHERE = ("output_dir", "overwrite", "dry_run")
# Those that may name files, whose content tells one run from another.
_FILES = ("model", "original", "dataset", "benchmark", "evaluation")


class DryRun(Exception):  # noqa: N818  It ends a run well.
    """Everything was checked and said; nothing is to be done."""


class Run:
    """A run in its folder, --output_dir.

    It leaves NAME.flags, the flags with their defaults, for --flagfile; NAME.json, the results; and
    events for TensorBoard. While it lasts, the folder .NAME holds what the same command needs to go
    on after it was killed. Of several processes (--strategy=multi_worker) the chief alone writes.

    Args:
        name: of the command.
        names: of the flags that the command takes.

    Raises:
        ValueError: the folder holds other files, or the results of other flags; --overwrite was not
            given.
        OSError: it cannot be written.
    """

    def __init__(self, name: str, names: Sequence[str]):
        self.name, self.output = name, checked_path(flags.FLAGS.output_dir, "--output_dir")
        self.state = self.output / f".{name}"
        self.is_chief = "strategy" not in names or _is_chief()
        lines = [line for each in sorted(names) for line in _lines(each)]
        self._lines = lines
        own = [line for each in sorted(names) if each not in _ELSEWHERE for line in _lines(each)]
        given = {each: flags.FLAGS[each].value for each in _FILES if each in names}
        self._identity = {"flags": own, "files": {k: _digest(v) for k, v in given.items()}}
        self._check_folder()

    @property
    def result(self) -> Path:
        """The file of the results."""
        return self.output / f"{self.name}.json"

    def _check_folder(self) -> None:
        """Raises unless the folder is free, or holds this very run."""
        overwrite = flags.FLAGS.overwrite
        stored = self._stored()
        if stored is not None and not overwrite:
            self._check_same(stored)
        elif stored is None and self.output.is_dir() and not overwrite:
            foreign = [each for each in self.output.iterdir() if each != self.state]
            if foreign and not list(self.output.glob("*.flags")):
                raise ValueError(
                    "--output_dir must be new, empty or of an earlier command. Received: "
                    f"{str(self.output)!r}, which holds other files; name another one, or say "
                    "--overwrite"
                )
        if self.output.exists():
            output_folder(self.output, "--output_dir")

    def _stored(self) -> dict[str, Any] | None:
        """What the run in the folder was, finished or not; None if there is none."""
        for path in (self.result, self.state / "run.json"):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                return dict(json.loads(path.read_text())["run"])
        return None

    def _check_same(self, stored: dict[str, Any]) -> None:
        if stored == self._identity:
            return
        there, here = (set(each.get("flags", ())) for each in (stored, self._identity))
        changed = sorted(there - here) + ["now"] + sorted(here - there)
        if len(changed) == 1:
            changed = ["the content of a file that a flag names"]
        raise ValueError(
            f"--output_dir {str(self.output)!r} holds a run of espace-{self.name} that was "
            f"another one: {' '.join(changed)}. Name another folder, or say --overwrite"
        )

    def finished(self) -> dict[str, Any] | None:
        """The results, if this very run was done before and is not to be done anew."""
        if flags.FLAGS.overwrite or flags.FLAGS.dry_run or not self.result.is_file():
            return None
        if self.is_chief:
            shutil.rmtree(self.state, ignore_errors=True)
        try:
            return json.loads(self.result.read_text())
        except ValueError as error:
            raise ValueError(
                f"{self.result} is damaged: {error}. Delete it, or say --overwrite"
            ) from error

    def begin(self, rows: Sequence[tuple[str, str]]) -> None:
        """Makes the folder ready; with --dry_run only says what would be done.

        Args:
            rows: (what, how) of everything that will be done, to the reader.

        Raises:
            DryRun: with --dry_run.
        """
        if flags.FLAGS.dry_run:
            _print_rows(self.name, rows)
            raise DryRun
        if not self.is_chief:
            return
        output_folder(self.output, "--output_dir")
        known = self.state / "run.json"
        if self.result.is_file() or not known.is_file() or self._stored() != self._identity:
            shutil.rmtree(self.state, ignore_errors=True)
            self.result.unlink(missing_ok=True)
            self.state.mkdir()
            write_json(known, {"run": self._identity})
        with atomic_write(self.output / f"{self.name}.flags", "--output_dir") as temporary:
            temporary.write_text("".join(f"{line}\n" for line in self._lines))

    def step(self, name: str, compute: Callable[[], Any]) -> Any:
        """What `compute` returns, JSON-able: read if it was done before the run was killed.

        Args:
            name: of the step, one that a file may have.
            compute: does it.
        """
        path = self.state / f"{name}.step.json"
        if path.is_file():
            return json.loads(path.read_text())
        found = compute()
        write_json(path, found)
        return json.loads(path.read_text())

    def forget(self) -> None:
        """Leaves nothing of a run that failed before there was anything to go on from."""
        kept = [path for path in self.state.rglob("*") if path.is_file()]
        if not self.is_chief or kept != [self.state / "run.json"]:
            return
        shutil.rmtree(self.state, ignore_errors=True)
        (self.output / f"{self.name}.flags").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.output.rmdir()  # if nothing else is in it

    def save(self, model: Any, name: str) -> None:
        """Writes a Keras model's file, whole or not at all."""
        if self.is_chief:
            with atomic_write(self.output / name, "--output_dir") as temporary:
                model.save(temporary)

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the results and drops what a restart would have needed."""
        if not self.is_chief:
            return
        write_json(self.result, {**summary, "run": self._identity})
        from espace_tf.training.events import write_numbers

        write_numbers(self.output / "events" / self.name, summary)
        shutil.rmtree(self.state, ignore_errors=True)


def _is_chief() -> bool:
    """Whether this process is the one of --strategy that writes files."""
    if flags.FLAGS.strategy != "multi_worker":
        return True
    try:
        found = json.loads(os.environ["TF_CONFIG"])
        cluster, task = found["cluster"], found["task"]
        first = "chief" if "chief" in cluster else "worker"
        return (task["type"], int(task["index"])) == (first, 0)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            "--strategy=multi_worker needs the environment variable TF_CONFIG with cluster and "
            f"task. Received: {os.environ.get('TF_CONFIG')!r}"
        ) from error


def write_json(path: Path, content: Any) -> None:
    """One file, whole or not at all."""
    with atomic_write(path, "--output_dir") as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def _lines(name: str) -> list[str]:
    """A flag as lines of a flagfile; none where it has no value."""
    flag = flags.FLAGS[name]
    if flag.value is None:
        return []
    return [line for line in flag.serialize().splitlines() if line]


def _digest(path: str | None) -> str | None:
    """A hash of a file, or of a SavedModel's folder; None if there is neither."""
    found, digest = Path(path or ""), hashlib.sha256()
    saved = (found / "saved_model.pb").is_file()
    if not path or not saved and not found.is_file():
        return None
    for each in sorted(found.rglob("*")) if saved else [found]:
        if each.is_file():
            digest.update(each.name.encode())
            with open(each, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _print_rows(name: str, rows: Sequence[tuple[str, str]]) -> None:
    print(f"espace-{name} would do this:")
    width = max(len(what) for what, _ in rows) + 2
    for what, how in rows:
        print(f"  {what:<{width}}{how}")
