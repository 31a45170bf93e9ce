"""What predicts the loss after fine-tuning: many plans of each speed, made and trained.

The planner has only what the analysis says of each option; training brings back much of it, and
more of one kind than of another. Here plans of one predicted speed are made that spend it
differently: the planner's and others in which layers and masks count by random factors (--plans of
them together), and the rivals that `compress` compares with the planner's where much is lost. Each
is applied, refitted by least squares, and fine-tuned shortly with the dense network as teacher. A
predictor is as good as the order it puts plans of one speed into: Spearman's rank correlation with
the loss on test images after training, averaged over the speeds. Those that a planner can use are
sums over layers; the losses measured before and after least squares, for which a network has to be
made, are shown beside them. Factor and power of "learned" are found on the other speeds.

Every plan is kept in --output_dir: the same command goes on where a killed run stopped. Writes
recovery.json there and the table as Markdown to --markdown. Half a minute a plan for the demo's
network on two cores.
"""

import functools
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
from absl import app, flags
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))

import espace_tf
from benchmarks import images, predictors, training
from benchmarks.steps import (
    Steps,
    command,
    markdown,
    rich_table,
    settings_of,
    speeds,
    write_json,
)
from espace_tf.bin.inputs import models
from espace_tf.config import EspaceConfig
from espace_tf.files import atomic_write, output_path
from espace_tf.network import costs
from espace_tf.planning import contenders
from espace_tf.timing import runtimes

_NETWORK = Path(__file__).parents[1] / "demo" / "network.keras"

_MODEL = flags.DEFINE_string("model", str(_NETWORK), "A trained classifier, a .keras file.")
_DATA = flags.DEFINE_string(
    "data", images.FASHION, "Its images: a folder of idx files or an .npz file."
)
_SPEEDUPS = flags.DEFINE_list("speedups", ["2", "4", "5.48", "8"], "Predicted ones.")
_PLANS = flags.DEFINE_integer("plans", 12, "Of each speed.", 2)
_SPREAD = flags.DEFINE_float("spread", 1.0, "Of the logarithm of a layer's factors.", 0.0)
_OUTPUT = flags.DEFINE_string("output_dir", "out/recovery", "Where results are kept.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "The table, a .md file.")
_BATCH = flags.DEFINE_integer("batch_size", 16, "Images per call when time is measured.", 1)
_THREADS = flags.DEFINE_integer("threads", 1, "CPU threads.", 1)
_CALIBRATION = flags.DEFINE_integer("calibration_images", 512, "To analyse with.", 1)
_HOLDOUT = flags.DEFINE_integer("holdout", 1000, "The last training images, not trained on.", 1)
_TEST = flags.DEFINE_integer("test_images", 10000, "Test images, at most.", 1)
_STEPS = flags.DEFINE_integer("tune_steps", 200, "Of fine-tuning.", 1)
_TRAIN_BATCH = flags.DEFINE_integer("train_batch", 32, "Images a step.", 1)
_RATE = flags.DEFINE_float("tune_rate", 3e-4, "Adam's rate there, with cosine decay to 0.", 0)
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.", 0)

_FREE_DAMAGE = 1e-6
_RIVALS = (-1, -2)
# Flags that do not change what a step finds.
_FREE = ("speedups", "plans", "output_dir", "markdown")
_COLUMNS = ("predictor", "rank correlation with the loss after training")


class Recovery:
    """The network, its images and its analysis; makes plans and trains what they make.

    Args:
        steps: where everything is kept.
    """

    def __init__(self, steps: Steps):
        self.steps = steps
        self.images = images.fashion(
            _DATA.value, holdout=_HOLDOUT.value, test_images=_TEST.value, seed=_SEED.value
        )
        self.model = keras.models.load_model(models.check(_MODEL.value, "--model"), compile=False)
        steps.run("analyze", self._analyze)
        self.analysis = espace_tf.Analysis.load(steps.folder / "analysis", model=self.model)

    def _analyze(self, work: Path) -> int:
        config = EspaceConfig(
            batch_size=_BATCH.value,
            threads=_THREADS.value,
            calibration_images=_CALIBRATION.value,
            seed=_SEED.value,
            cache_dir=work,
        )
        found = espace_tf.analyze(
            self.model, self.images.calibration(_CALIBRATION.value), config=config
        )
        found.save(self.steps.folder / "analysis")
        return found.images

    def plan(self, speedup: float, number: int) -> espace_tf.Plan:
        """The number-th plan of a speed; 0 is the planner's own, below are its rivals."""
        analysis = self.analysis
        if number < 0:
            analysis = contenders.rivals(analysis)[-number - 1]
        elif number:
            random = np.random.default_rng([_SEED.value, round(1000 * speedup), number])
            analysis = predictors.perturbed(analysis, random, _SPREAD.value)
        # All of them have that speed, whatever it costs.
        return espace_tf.plan(analysis, speedup=speedup, damage_scale=_FREE_DAMAGE)

    def trained(self, speedup: float, number: int) -> dict[str, Any]:
        """Losses and accuracies of a plan's network, computed or read."""
        return self.steps.run(
            f"plan_{speedup:g}_{number}", functools.partial(self._train, speedup, number)
        )

    def _train(self, speedup: float, number: int, work: Path) -> dict[str, Any]:
        made = self.plan(speedup, number)
        small = espace_tf.apply(self.model, made)
        found = {"macs": costs.macs(small), "predicted": made.predicted_speedup}
        found["before"] = training.judge(small, self.images)
        x, _ = self.images.calibration(_CALIBRATION.value)
        espace_tf.reconstruct(small, x, teacher=self.model, seconds=0, verbose=0)
        found["refitted"] = training.judge(small, self.images)
        training.tune(
            *(small, self.model, self.images, work),
            **{"steps": _STEPS.value, "rounds": 1, "batch": _TRAIN_BATCH.value},
            **{"rate": _RATE.value, "batch_norm_batches": 50, "seed": _SEED.value},
        )
        return found | {"after": training.judge(small, self.images)}


def table(recovery: Recovery, rows: list[dict[str, Any]]) -> list[list[str]]:
    """The predictors, the best first."""
    groups = [row["speedup"] for row in rows]
    after = [row["after"]["loss"] for row in rows]
    parts = [
        predictors.parts_of(recovery.analysis, recovery.plan(row["speedup"], row["number"]))
        for row in rows
    ]
    found = {
        name: predictors.rank_correlation([function(each) for each in parts], after, groups)
        for name, function in predictors.additive().items()
    }
    unseen, (weight, power) = predictors.learned(parts, after, groups)
    found[f"learned: power {power:g}, masks {weight:g} times"] = unseen
    measured = {
        "multiply-accumulates left (fewest last)": [-float(row["macs"]) for row in rows],
        "measured: loss before training": [row["before"]["loss"] for row in rows],
        "measured: loss after least squares": [row["refitted"]["loss"] for row in rows],
    }
    for name, values in measured.items():
        found[name] = predictors.rank_correlation(values, after, groups)
    ordered = sorted(found.items(), key=lambda each: -each[1])
    return [[name, f"{value:.2f}"] for name, value in ordered]


def page(rows: list[dict[str, Any]], cells: list[list[str]]) -> str:
    """The Markdown file."""
    asked = sorted({row["speedup"] for row in rows})
    told = []
    for speed in asked:
        here = [row for row in rows if row["speedup"] == speed]
        planned = next(row for row in here if not row["number"])
        chosen = min(
            (row for row in here if row["number"] <= 0), key=lambda row: row["refitted"]["loss"]
        )
        after = [row["after"]["top1"] for row in here]
        values = planned["after"]["top1"], chosen["after"]["top1"]
        values += min(after), float(np.median(after)), max(after)
        told.append([f"{speed:g}", str(len(here)), *(f"{value:.4f}" for value in values)])
    columns = ("speed", "plans", "top-1 of the planner's", "with rivals", "lowest", "median")
    columns += ("highest",)
    return (
        f"Written by `python benchmarks/recovery.py`, whose docstring says what was done. Network: "
        f"{Path(_MODEL.value).name}; {len(rows)} plans, {_STEPS.value} steps of "
        f"{_TRAIN_BATCH.value} images each, judged on {_TEST.value:,} test images.\n\n"
        f"{markdown(_COLUMNS, cells)}\n\n{markdown(columns, told)}\n"
    )


def run(speedups: list[float], path: Path) -> None:
    """All plans, then the table; written anew after each plan of the last speeds."""
    runtimes.set_threads(_THREADS.value)
    module = sys.argv[0] if __name__ == "__main__" else __name__
    steps = Steps(Path(_OUTPUT.value), settings_of(flags.FLAGS, module, _FREE))
    recovery, console, rows = Recovery(steps), Console(width=120), []
    for number in (*range(_PLANS.value), *_RIVALS):
        for speedup in speedups:
            found = recovery.trained(speedup, number)
            rows.append({"speedup": speedup, "number": number, **found})
            console.print(
                f"{speedup:g} times, plan {number}: loss {found['before']['loss']:.3f}, refitted "
                f"{found['refitted']['loss']:.3f}, trained {found['after']['loss']:.3f}, top-1 "
                f"{found['after']['top1']:.4f}"
            )
        if not number:
            continue
        cells = table(recovery, rows)
        write_json(steps.folder / "recovery.json", {"rows": rows, "table": cells})
        with atomic_write(path, "--markdown") as temporary:
            temporary.write_text(page(rows, cells))
    console.print(rich_table(f"{len(rows)} plans", _COLUMNS, cells))


def check_flags() -> tuple[list[float], Path]:
    """Speeds, and the file of the table.

    Raises:
        ValueError: flags that make no sense; the message names them.
    """
    models.check(_MODEL.value, "--model")
    speedups = speeds(_SPEEDUPS.value)
    if _MARKDOWN.value is None:
        return speedups, Path(_OUTPUT.value) / "recovery.md"
    return speedups, Path(output_path(Path(_MARKDOWN.value), "--markdown", suffix=".md"))


def main(argv: list[str]) -> int:
    """Does what the module says; returns the exit status."""
    return command("recovery", argv, lambda: run(*check_flags()))


if __name__ == "__main__":
    app.run(main)
