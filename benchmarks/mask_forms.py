"""Would masks lose less after training if they had another form?

    python benchmarks/mask_forms.py --output_dir=out/mask_forms

At each of --speedups one plan without masks (the fastest where none is so fast), one with more
masks than the planner takes (what they add to the damage of a rank counts 1/4), and the latter's
masks in other forms:

    nearest    a skipped position shows its nearest computed neighbour: what espace_tf does
    bilinear   it shows the mean of its four nearest, weighted by 1 / squared distance
    learned    the same, and the weights are trained with the network
    refined    nearest; after half the training the positions are chosen anew, of the same family
               and keep, for the weights as they then are
    shared     nearest; the masks of all layers with maps of one size are the same (a plan of its
               own: the best one of that speed for which this holds)

Each is refitted by least squares and fine-tuned --tunings times, with other images each time, with
the dense network as teacher. Sums of four take time that is not counted here: the table says what
they would be worth if they were free. Judged on test images.

Every training is kept in --output_dir: the same command goes on where a killed run stopped. Writes
mask_forms.json there and the table as Markdown to --markdown. A minute a training for the demo's
network on two cores.
"""

import functools
import math
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import keras
from absl import app, flags
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))

import espace_tf
from benchmarks import images, training
from benchmarks.other_masks import interpolated, refined, shared_plan, weighted_plan
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
from espace_tf.rewriting.apply import densify
from espace_tf.timing import runtimes

_NETWORK = Path(__file__).parents[1] / "demo" / "network.keras"

_MODEL = flags.DEFINE_string("model", str(_NETWORK), "A trained classifier, a .keras file.")
_DATA = flags.DEFINE_string(
    "data", images.FASHION, "Its images: a folder of idx files or an .npz file."
)
_SPEEDUPS = flags.DEFINE_list("speedups", ["4", "5.48", "8"], "Predicted ones.")
_OUTPUT = flags.DEFINE_string("output_dir", "out/mask_forms", "Where results are kept.")
_MARKDOWN = flags.DEFINE_string("markdown", None, "The table, a .md file.")
_BATCH = flags.DEFINE_integer("batch_size", 16, "Images per call when time is measured.", 1)
_THREADS = flags.DEFINE_integer("threads", 1, "CPU threads.", 1)
_CALIBRATION = flags.DEFINE_integer("calibration_images", 512, "To analyse with.", 1)
_HOLDOUT = flags.DEFINE_integer("holdout", 1000, "The last training images, not trained on.", 1)
_TEST = flags.DEFINE_integer("test_images", 10000, "Test images, at most.", 1)
_TUNINGS = flags.DEFINE_integer("tunings", 2, "Of each form, each with other images.", 1)
_STEPS = flags.DEFINE_integer("tune_steps", 200, "Of fine-tuning.", 2)
_TRAIN_BATCH = flags.DEFINE_integer("train_batch", 32, "Images a step.", 1)
_RATE = flags.DEFINE_float("tune_rate", 1e-3, "Adam's rate there, with cosine decay to 0.", 0)
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.", 0)

# Flags that do not change what a step finds.
_FREE = ("speedups", "output_dir", "markdown", "tunings")
_COLUMNS = ("form", "predicted speed", "loss before", "loss after", "top-1 after (lowest, highest)")
_MASKS_COUNT = 0.25


class Forms:
    """The network, its images and its analysis; makes plans and trains their masks in every form.

    Args:
        steps: where everything is kept.
    """

    def __init__(self, steps: Steps):
        self.steps = steps
        self.images = _images(0)
        self.model = keras.models.load_model(models.check(_MODEL.value, "--model"), compile=False)
        self._config = EspaceConfig(
            batch_size=_BATCH.value,
            threads=_THREADS.value,
            calibration_images=_CALIBRATION.value,
            seed=_SEED.value,
            cache_dir=steps.folder / "cache",
        )
        steps.run("analyze", self._analyze)
        self.analysis = espace_tf.Analysis.load(steps.folder / "analysis", model=self.model)

    def _analyze(self, work: Path) -> int:
        del work
        found = self._analysis_of(self.model)
        found.save(self.steps.folder / "analysis")
        return found.images

    def _analysis_of(self, model: keras.Model) -> espace_tf.Analysis:
        return espace_tf.analyze(
            model, self.images.calibration(_CALIBRATION.value), config=self._config
        )

    def rows(self, speedup: float) -> dict[str, Callable[[], list[dict[str, Any]]]]:
        """What computes the trainings of each form, by its name."""
        none = weighted_plan(self.analysis, speedup, math.inf)
        masked = weighted_plan(self.analysis, speedup, _MASKS_COUNT)
        learned = {"bilinear": False, "learned": True}
        forms = {
            "no masks": (none, None),
            "nearest": (masked, None),
            **{
                name: (masked, functools.partial(interpolated, plan=masked, trained=trained))
                for name, trained in learned.items()
            },
            "refined": (masked, None),
            "shared": (shared_plan(self.analysis, speedup), None),
        }
        return {
            name: functools.partial(self._trainings, speedup, name, made, change)
            for name, (made, change) in forms.items()
        }

    def _trainings(
        self, speedup: float, name: str, made: espace_tf.Plan, change: Callable | None
    ) -> list[dict[str, Any]]:
        return [
            self.steps.run(
                f"{name.replace(' ', '_')}_{speedup:g}_{number}",
                functools.partial(self._train, name, made, change, number),
            )
            for number in range(_TUNINGS.value)
        ]

    def _train(
        self, name: str, made: espace_tf.Plan, change: Callable | None, number: int, work: Path
    ) -> dict[str, Any]:
        small = espace_tf.apply(self.model, made)
        x, _ = self.images.calibration(_CALIBRATION.value)
        espace_tf.reconstruct(small, x, teacher=self.model, seconds=0, verbose=0)
        if change is not None:
            small = change(small)
        found = {"predicted": made.predicted_speedup, "before": training.judge(small, self.images)}
        if name == "refined":
            halves = (work / "first", _STEPS.value // 2), (work / "second", _STEPS.value // 2)
            self._tune(small, number, *halves[0])
            dense = self._analysis_of(densify(self.model, small))
            small = refined(self.model, small, made, dense)
            self._tune(small, number, *halves[1])
        else:
            self._tune(small, number, work, _STEPS.value)
        return found | {"after": training.judge(small, self.images)}

    def _tune(self, small: keras.Model, number: int, work: Path, steps: int) -> None:
        work.mkdir(exist_ok=True)
        training.tune(
            *(small, self.model, _images(number), work),
            **{"steps": steps, "rounds": 1, "batch": _TRAIN_BATCH.value, "rate": _RATE.value},
            **{"batch_norm_batches": 50, "seed": _SEED.value + number},
        )


def _images(number: int) -> images.Images:
    """The images in the order of the number-th fine-tuning; those judged on are the same."""
    options = {"holdout": _HOLDOUT.value, "test_images": _TEST.value}
    return images.fashion(_DATA.value, **options, seed=_SEED.value + number)


def cells(name: str, found: list[dict[str, Any]]) -> list[str]:
    """A row of the table: means over the trainings."""
    top1 = [each["after"]["top1"] for each in found]
    return [
        name,
        f"{found[0]['predicted']:.2f}",
        f"{fmean(each['before']['loss'] for each in found):.4f}",
        f"{fmean(each['after']['loss'] for each in found):.4f}",
        f"{fmean(top1):.4f} ({min(top1):.4f}, {max(top1):.4f})",
    ]


def run(speedups: list[float], path: Path) -> None:
    """All trainings; the files are written anew after each speed."""
    runtimes.set_threads(_THREADS.value)
    module = sys.argv[0] if __name__ == "__main__" else __name__
    steps = Steps(Path(_OUTPUT.value), settings_of(flags.FLAGS, module, _FREE))
    forms, console = Forms(steps), Console(width=120)
    about = (
        f"Written by `python benchmarks/mask_forms.py`, whose docstring says what the forms are. "
        f"Network: {Path(_MODEL.value).name}; {_STEPS.value} steps of {_TRAIN_BATCH.value} images "
        f"each; mean of {_TUNINGS.value}; judged on {forms.images.test_images:,} test images."
    )
    rows, parts = [], [about]
    for speedup in speedups:
        table = []
        for name, trainings in forms.rows(speedup).items():
            found = trainings()
            rows.append({"speedup": speedup, "form": name, "trainings": found})
            table.append(cells(name, found))
        console.print(rich_table(f"{speedup:g} times faster", _COLUMNS, table))
        parts += [f"{speedup:g} times faster:", markdown(_COLUMNS, table)]
        write_json(steps.folder / "mask_forms.json", {"rows": rows})
        with atomic_write(path, "--markdown") as temporary:
            temporary.write_text("\n\n".join(parts) + "\n")


def check_flags() -> tuple[list[float], Path]:
    """Speeds, and the file of the table.

    Raises:
        ValueError: flags that make no sense; the message names them.
    """
    models.check(_MODEL.value, "--model")
    speedups = speeds(_SPEEDUPS.value)
    if _MARKDOWN.value is None:
        return speedups, Path(_OUTPUT.value) / "mask_forms.md"
    return speedups, Path(output_path(Path(_MARKDOWN.value), "--markdown", suffix=".md"))


def main(argv: list[str]) -> int:
    """Does what the module says; returns the exit status."""
    return command("mask_forms", argv, lambda: run(*check_flags()))


if __name__ == "__main__":
    app.run(main)
