"""What `compress` does after its flags are read: every part is kept for a restart."""

from pathlib import Path
from typing import Any

import numpy as np

from espace_tf.bin import opening, shared_flags
from espace_tf.bin.frame import command, formats, outcome
from espace_tf.bin.frame.run import Run, write_json
from espace_tf.bin.inputs import models
from espace_tf.bin.inputs.datasets import Examples
from espace_tf.bin.work import judging, training, writing
from espace_tf.data.batches import batches
from espace_tf.files import atomic_write, output_folder
from espace_tf.pipeline import compress
from espace_tf.planning import sweep as sweeping
from espace_tf.records import saving
from espace_tf.records.analysis import Analysis
from espace_tf.records.plan import Plan
from espace_tf.reports import curves, html
from espace_tf.rewriting.apply import apply
from espace_tf.timing import benchmark


class Data:
    """The examples that a network is compressed with.

    Args:
        examples: as the network takes them.
        test: the split to judge on; None: nothing judges.
    """

    def __init__(self, examples: Examples, test: str | None):
        self.examples, self.test_split = examples, test
        # What statistics see and what ranges come from are images as at inference.
        self.train = examples.held_out(shared_flags.TRAIN_SPLIT.value)
        self.test = None if test is None else examples.held_out(test)

    def described(self) -> str:
        """For a reader."""
        splits = (shared_flags.TRAIN_SPLIT.value, self.test_split)
        return opening.described(self.examples.source, self.examples, *splits)


class Compression:
    """A network, compressed to one or several speeds, in a folder.

    Args:
        run: the folder, and what is kept of an earlier start.
        model: the given Keras model.
        data: None: its weights decide.
        config: an EspaceConfig.
        budget: what may be lost, as `compress` takes it.
    """

    def __init__(
        self, run: Run, model: Any, data: Data | None, config: Any, budget: dict[str, float]
    ):
        self.run, self.model, self.data, self.config = run, model, data, config
        self.budget = budget
        self.smalls: dict[str, Any] = {}
        self.rows: dict[str, list[benchmark.Row]] = {}
        self.found: dict[str, dict[str, Any]] = {}
        self.asked: list[float | None] = []

    def all(self, asked: list[float | None], epochs: int) -> dict[str, dict[str, Any]]:
        """Compresses to every speed and writes it; what was found, by folder.

        Args:
            asked: speeds; one alone may be None: what the budget allows.
            epochs: of training after each.
        """
        from rich.console import Console

        console, self.asked = Console(), asked
        self._warn_of_guesses()
        console.rule("Analyse, plan, rebuild")
        for name, small in self._smaller().items():
            if len(asked) > 1:
                console.rule(f"{name[:-1]} times faster")
            self.smalls[name] = small
            self.found[name] = self._written(name, small, epochs)
        return self.found

    def folder(self, name: str) -> Path:
        """Where the files of a speed go."""
        output = self.run.output
        return output_folder(output / name, "--output_dir") if len(self.asked) > 1 else output

    def _judged(self, calls: dict[str, Any]) -> dict[str, dict[str, float]]:
        """What is known of networks on the held-out images; nothing if there are none."""
        if self.data is None or self.data.test is None:
            return {}
        return judging.Judging(self.model, self.data.test, calls).all()

    def _warn_of_guesses(self) -> None:
        """Before minutes of work on images that mean nothing to the network."""
        if self.data is None or self.data.test is None:
            return
        judged = self.run.step("before", lambda: self._judged({"before": self.model}))
        found = judged.get("before", {})
        if "accuracy" in found and outcome.guesses(found, self.model, found["images"]):
            command.warn(
                "compress",
                f"the given network's accuracy on {self.data.test_split} is "
                f"{found['accuracy']:.4f}, which guessing gives too: are the images as in its "
                "training? See --preprocessing",
            )

    def _smaller(self) -> dict[str, Any]:
        """One model per speed, by its folder; rebuilt from its plan if that was made before."""
        names = self._names()
        kept = self.run.state / "plans.step.json"
        if not kept.is_file():
            smalls = dict(zip(names, self._compressed(), strict=True))
            next(iter(smalls.values())).espace_analysis.save(self.run.state / "analysis.json")
            for name, small in smalls.items():
                small.espace_plan.save(self.run.state / f"{name}.plan.json")
                small.save_weights(self._weights(name))  # not those of the plan: reconstructed
            self.run.step("plans", lambda: list(smalls))
        analysis = Analysis.load(self.run.state / "analysis.json")
        smalls = {}
        for name in names:
            # Also in the first run, so that a restart begins with the very same numbers.
            made = Plan.load(self.run.state / f"{name}.plan.json")
            small = apply(self.model, made)
            small.load_weights(self._weights(name))
            small.espace_plan, small.espace_analysis = made, analysis
            smalls[name] = small
        return smalls

    def _names(self) -> dict[str, float | None]:
        """The speeds by the names of their folders."""
        return {"fastest" if each is None else f"{each:g}x": each for each in self.asked}

    def _weights(self, name: str) -> Path:
        return self.run.state / f"{name}.weights.h5"

    def _compressed(self) -> list[Any]:
        given = (self.model, None if self.data is None else self.data.train)
        if len(self.asked) == 1:
            asked = {"speedup": self.asked[0], **self.budget}
            return [compress(*given, config=self.config, **asked)]
        rows = sweeping.sweep(*given, speedups=self.asked, config=self.config)
        return [row.model for row in rows[1:]]

    def _written(self, name: str, small: Any, epochs: int) -> dict[str, Any]:
        """Trains a compressed model if asked, writes it and measures what was written."""
        folder = self.folder(name)
        if epochs:
            self.run.step(f"{name}.training", lambda: self._trained(name, small, epochs))
        else:
            self.run.step(f"{name}.model", lambda: _save(small, folder))
        _save_plan(small.espace_plan, folder / "plan.json")
        # What is judged is what was written.
        written = models.load(folder / "compressed.keras")
        named = {"before": self.model, "after": written}
        rows = self.run.step(f"{name}.times", lambda: self._timed(named))
        self.rows[name] = [benchmark.Row(**row) for row in rows]
        judged = self.run.step(f"{name}.judged", lambda: self._judged(named))
        exports = [
            self.run.step(f"{name}.{each}", lambda each=each: self._exported(written, folder, each))
            for each in dict.fromkeys(shared_flags.FORMATS.value)
        ]
        return {
            "asked_speedup": self._names()[name],
            "speedup": self.rows[name][1].speedup,
            "error": self.rows[name][1].error,
            "planned_speedup": small.espace_plan.measured_speedup,
            "planned_error": small.espace_plan.measured_error,
            "runtime": shared_flags.RUNTIME.value,
            "batch_size": shared_flags.BATCH.value,
            "threads": shared_flags.THREADS.value,
            **outcome.sizes(self.rows[name], named, judged),
            "max_difference": self.rows[name][1].max_difference,
            "exports": exports,
        }

    def _trained(self, name: str, small: Any, epochs: int) -> dict[str, Any]:
        best = shared_flags.KEEP_BEST.value
        found = training.train(
            small,
            self.data.examples,
            None,  # the held-out images judge at the end; they do not choose weights
            teacher=self.model,
            epochs=epochs,
            keep_best=best is None or best,
            run=self.run,
            part=name,
        )
        _save(small, self.folder(name))
        return found

    def _timed(self, named: dict[str, Any]) -> list[dict[str, Any]]:
        size = shared_flags.BATCH.value
        inputs = None
        if self.data is not None:
            x, _ = next(batches(self.data.train, size, size))
            inputs = np.resize(x, (size, *np.shape(x)[1:]))  # again and again if too few
        rows = benchmark.benchmark(
            *named.values(),
            batch_size=size,
            runtime=shared_flags.RUNTIME.value,
            threads=shared_flags.THREADS.value,
            inputs=inputs,
            names=tuple(named),
        )
        return [vars(row) for row in rows]

    def _exported(self, written: Any, folder: Path, name: str) -> dict[str, Any]:
        """Writes a file; what is known of it."""
        path = folder / formats.file_name(name)
        entry = writing.write(written, path, name, None if self.data is None else self.data.train)
        if name not in formats.QUANTIZATIONS:
            return entry
        call = judging.from_file(str(path), written)
        judged = self._judged({"before": self.model, "after": call}).get("after", {})
        return entry | judged

    def draw(self) -> None:
        """Reports of all speeds, and the curve of several."""
        speeds = []
        accuracies = {
            name: {each: found[each].get("accuracy") for each in ("before", "after")}
            for name, found in self.found.items()
        }
        if len(self.found) > 1:
            first = next(iter(accuracies.values()))
            speeds = [sweeping.given(self.model, accuracy=first["before"])]
            for name, small in self.smalls.items():
                known = {"measured": self.found[name]["speedup"]}
                speeds.append(sweeping.row(small, **known, accuracy=accuracies[name]["after"]))
            columns = ("asked", "measured", "damage", "accuracy")
            table = [{each: getattr(row, each) for each in columns} for row in speeds]
            write_json(self.run.output / "sweep.json", table)
        for name, small in self.smalls.items():
            known = None if None in accuracies[name].values() else accuracies[name]
            options = {"accuracy": known, "rows": self.rows[name], "sweep": speeds}
            html.report(small, self.folder(name) / "report.html", **options)
        if curves.measure(speeds):
            with atomic_write(self.run.output / "sweep.svg", "--output_dir") as temporary:
                temporary.write_bytes(curves.speed_curve(speeds))


def _save(small: Any, folder: Path) -> None:
    with atomic_write(folder / "compressed.keras", "--output_dir") as temporary:
        small.save(temporary)


def _save_plan(plan: Plan, path: Path) -> None:
    """Saves a plan over one that is there, with its arrays, or over whatever is: --overwrite."""
    try:
        saving.check_replaceable(path, saving.PLAN)
    except ValueError:
        path.unlink()
    plan.save(path)
