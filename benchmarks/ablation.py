"""What each part of the method is worth: every combination of its parts at one and the same speed.

    python benchmarks/ablation.py --output_dir=out/ablation

On a trained network (the demo's by default), at 2, 4 and 5.48 times its speed, a row for each of

    factors   plain SVD | whitened + refit (from the data that the layer sees)
    masks     none | largest impact, nearest neighbour shown | a mask family chosen for each layer
    ranks     uniform (one share of the break-even rank) | energy (one share of the energy) |
              planner (espace_tf.plan)

and for masks alone. Two rows stand for published settings: "LRDKT/AIMET-style (plain SVD, energy
ranks, no mask)" and "Figurnov-style (no decomposition, impact masks, nearest)". Rows of uniform and
energy ranks use vertical pairs, and with a mask ranks bring the square root of the speed and one
keep for all layers the rest.

Rows are comparable because each is brought to the asked time: its free parameter is bisected on
predicted times, the network is measured, stripped and in turns with the dense one, and the
bisection repeated with the target corrected by what was measured (--rounds times at most; the
nearest counts). A row that cannot get so fast shows what it reached, marked. All on one thread
(--threads): a network of 2 ms waits for a second one to wake, and one and the same plan was then
measured 4.1 and 5.5 times faster within minutes. Then its top-1 on the test images before and after
the same short fine-tuning with the dense network as teacher: the mean of --tunings, each with other
images and flips.

Every row is kept in --output_dir: the same command goes on where a killed run stopped. Writes
ablation.json there and the table as Markdown to --markdown. About two minutes a row for the
demo's network on two cores. Another network: --model=FILE.keras.
"""

import functools
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import keras
from absl import app, flags
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))

import espace_tf
from benchmarks import combinations, images, training
from benchmarks.combinations import Combination
from benchmarks.rounds import speed_ratios
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
from espace_tf.config import RUNTIMES, EspaceConfig, runtime_title
from espace_tf.files import atomic_write, output_path
from espace_tf.network import costs
from espace_tf.planning.correction import Correction
from espace_tf.timing import runtimes

_NETWORK = Path(__file__).parents[1] / "demo" / "network.keras"

_MODEL = flags.DEFINE_string("model", str(_NETWORK), "A trained classifier, a .keras file.")
_DATA = flags.DEFINE_string(
    "data", images.FASHION, "Its images: a folder of idx files or an .npz file."
)
_SPEEDUPS = flags.DEFINE_list("speedups", ["2", "4", "5.48"], "How many times faster.")
_FACTORS = flags.DEFINE_list(
    "factors", list(combinations.FACTORS), f"Rows with these: {', '.join(combinations.FACTORS)}."
)
_MASKS = flags.DEFINE_list(
    "masks", list(combinations.MASKS), f"Rows with these: {', '.join(combinations.MASKS)}."
)
_RANKS = flags.DEFINE_list(
    "ranks", list(combinations.RANKS), f"Rows with these: {', '.join(combinations.RANKS)}."
)
_OUTPUT = flags.DEFINE_string("output_dir", "out/ablation", "Where results are kept.")
_MARKDOWN = flags.DEFINE_string(
    "markdown", None, "The table, a .md file. Default: ablation.md in --output_dir."
)
_RUNTIME = flags.DEFINE_enum("runtime", "tf", list(RUNTIMES), "Where time is measured.")
_BATCH = flags.DEFINE_integer("batch_size", 16, "Images per call when time is measured.", 1)
_THREADS = flags.DEFINE_integer("threads", 1, "CPU threads.", 1)
_CALIBRATION = flags.DEFINE_integer("calibration_images", 512, "To analyse with.", 1)
_HOLDOUT = flags.DEFINE_integer("holdout", 1000, "The last training images, not trained on.", 1)
_TEST = flags.DEFINE_integer("test_images", 10000, "Test images, at most.", 1)
_TUNINGS = flags.DEFINE_integer("tunings", 3, "Fine-tunings of a row, each with other images.", 1)
_STEPS = flags.DEFINE_integer("tune_steps", 200, "Of fine-tuning.", 1)
_TRAIN_BATCH = flags.DEFINE_integer("train_batch", 32, "Images a step.", 1)
_RATE = flags.DEFINE_float("tune_rate", 1e-3, "Adam's rate there, with cosine decay to 0.", 0)
_NORMS = flags.DEFINE_integer("batch_norm_batches", 50, "To estimate batch norms on; 0: none.", 0)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often a row is measured and corrected.", 1)
_TOLERANCE = flags.DEFINE_float("tolerance", 0.03, "How near is near enough.", 0.001, 1)
_TIME_ROUNDS = flags.DEFINE_integer("time_rounds", 5, "Of timing: each gives one ratio.", 1)
_REPEATS = flags.DEFINE_integer("repeats", 15, "Calls of each network in a round, at most.", 1)
_SECONDS = flags.DEFINE_float("round_seconds", 5, "After which a round ends.", 0.01)
_SEED = flags.DEFINE_integer("seed", 0, "Of everything random.", 0)

# Flags that do not change what a step finds.
_FREE = ("speedups", "factors", "masks", "ranks", "output_dir", "markdown", "tunings")
_COLUMNS = (
    *("setting", "measured (quartiles)", "predicted", "fewer MACs"),
    *("top-1 before", "after (lowest, highest)"),
)


def check_flags() -> tuple[list[float], list[Combination], Path]:
    """Speeds, rows and the file of the table.

    Raises:
        ValueError: flags that make no sense; the message names them.
    """
    models.check(_MODEL.value, "--model")
    chosen = {"factors": _FACTORS.value, "masks": _MASKS.value, "ranks": _RANKS.value}
    for name, values in chosen.items():
        allowed = tuple(getattr(combinations, name.upper()))
        if not values or set(values) - set(allowed):
            raise ValueError(
                f"--{name} must list some of {', '.join(allowed)}. Received: {','.join(values)!r}"
            )
    rows = [
        row
        for row in combinations.ALL
        if all(getattr(row, name) in values for name, values in chosen.items())
    ]
    if not rows:
        raise ValueError(
            "--factors, --masks and --ranks leave no row: 'undecomposed' goes with 'impact' and "
            "'uniform' only"
        )
    folder = Path(_OUTPUT.value)
    table = folder / "ablation.md" if _MARKDOWN.value is None else Path(_MARKDOWN.value)
    if _MARKDOWN.value is not None:
        output_path(table, "--markdown", suffix=".md")
    return speeds(_SPEEDUPS.value), rows, table


class Ablation:
    """The network, its images and its analysis; makes rows.

    Args:
        steps: where everything is kept.
    """

    def __init__(self, steps: Steps):
        self.steps = steps
        self.images = _images(0)
        self.model = self._load()
        steps.run("analyze", self._analyze)
        self.analysis = espace_tf.Analysis.load(steps.folder / "analysis", model=self.model)
        self.untouched = steps.run(
            "untouched", lambda work: training.top1(self.model, self.images.test)
        )

    def _load(self) -> keras.Model:
        return keras.models.load_model(models.check(_MODEL.value, "--model"), compile=False)

    def _analyze(self, work: Path) -> int:
        config = EspaceConfig(
            runtime=_RUNTIME.value,
            batch_size=_BATCH.value,
            threads=_THREADS.value,
            calibration_images=_CALIBRATION.value,
            seed=_SEED.value,
            cache_dir=work,
        )
        data = self.images.calibration(_CALIBRATION.value)
        found = espace_tf.analyze(self.model, data, config=config)
        found.save(self.steps.folder / "analysis")
        return found.images

    def row(self, combination: Combination, speedup: float) -> dict[str, Any]:
        """One row, computed or read."""
        slug, speed = combination.slug, f"{speedup:g}"
        planned = functools.partial(self._plan, combination, speedup)
        found = self.steps.run(f"plan_{speed}_{slug}", planned)
        tuned = []
        for number in range(_TUNINGS.value):
            tune = functools.partial(self._tune, f"plan_{speed}_{slug}.plan", number)
            name = f"tune_{speed}_{slug}" + (f"_{number}" if number else "")
            tuned.append(self.steps.run(name, tune))
        afters = [each["after"] for each in tuned]
        return found | {"before": tuned[0]["before"], "after": fmean(afters), "afters": afters}

    def _plan(self, combination: Combination, speedup: float, work: Path) -> dict[str, Any]:
        """Writes the plan measured nearest to the speed; what it reached."""
        target, best, correction = speedup, None, Correction(speedup)
        for _ in range(_ROUNDS.value):
            made, reached = combinations.plan_at(self.analysis, combination, target)
            small = espace_tf.apply(self.model, made)
            time = self._time(small) if made.layers else {"ratio": 1.0, "low": 1.0, "high": 1.0}
            miss = abs(time["ratio"] / speedup - 1)
            if best is None or miss < best["miss"]:
                best = {"miss": miss, "measured": time, "predicted": made.predicted_speedup}
                best |= {
                    "fastest": not reached,
                    "macs": [costs.macs(self.model), costs.macs(small)],
                }
                made.save(self.steps.folder / f"plan_{speedup:g}_{combination.slug}.plan")
            too_slow = not reached and time["ratio"] < speedup  # and there is nothing faster
            if miss <= _TOLERANCE.value or too_slow:
                break
            correction.add(target / speedup, time["ratio"])
            target = max(speedup * correction.next(explained=target / time["ratio"]), 1.01)
        return best

    def _time(self, small: keras.Model) -> dict[str, float]:
        runtime = _RUNTIME.value
        named = {"dense": self.model, "small": small}
        found = speed_ratios(
            {name: runtimes.find(runtime).form(each) for name, each in named.items()},
            self.images.calibration(_BATCH.value)[0],
            runtime,
            rounds=_TIME_ROUNDS.value,
            repeats=_REPEATS.value,
            seconds=_SECONDS.value,
            threads=_THREADS.value,
        )
        return found["small"]

    def _tune(self, plan_name: str, number: int, work: Path) -> dict[str, Any]:
        """Accuracy before and after the number-th fine-tuning."""
        plan = espace_tf.Plan.load(self.steps.folder / plan_name)
        small = espace_tf.apply(self.model, plan)
        before = training.top1(small, self.images.test)
        told = training.tune(
            *(small, self.model, _images(number), work),
            **{"steps": _STEPS.value, "rounds": 1, "batch": _TRAIN_BATCH.value},
            **{"rate": _RATE.value, "batch_norm_batches": _NORMS.value},
            seed=_SEED.value + number,
        )
        after = training.top1(small, self.images.test)
        return {"before": before, "after": after, "tuned images": told["images"]}


def _images(number: int) -> images.Images:
    """The images in the order of the number-th fine-tuning; those judged on are the same."""
    options = {"holdout": _HOLDOUT.value, "test_images": _TEST.value}
    return images.fashion(_DATA.value, **options, seed=_SEED.value + number)


def cells(combination: Combination, row: dict[str, Any]) -> list[str]:
    """A row of the table."""
    time, (before, after) = row["measured"], row["macs"]
    mark = " (fastest)" if row["fastest"] else ""
    return [
        combination.title,
        f"{time['ratio']:.2f} ({time['low']:.2f} to {time['high']:.2f}){mark}",
        f"{row['predicted']:.2f}",
        f"{before / after:.2f}",
        f"{row['before']:.4f}",
        f"{row['after']:.4f} ({min(row['afters']):.4f}, {max(row['afters']):.4f})",
    ]


def run(speedups: list[float], rows: list[Combination], table: Path) -> None:
    """All rows; the files are written anew after each."""
    runtimes.set_threads(_THREADS.value)
    module = sys.argv[0] if __name__ == "__main__" else __name__
    steps = Steps(Path(_OUTPUT.value), settings_of(flags.FLAGS, module, _FREE))
    ablation, console = Ablation(steps), Console(width=120)
    found: dict[float, list[tuple[Combination, dict[str, Any]]]] = {}
    for speedup in speedups:
        for combination in rows:
            console.rule(f"{speedup:g} times: {combination.title}")
            found.setdefault(speedup, []).append((combination, ablation.row(combination, speedup)))
            write(found, ablation, table)
        told = [cells(*each) for each in found[speedup]]
        console.print(rich_table(f"Asked: {speedup:g} times faster", _COLUMNS, told))
    console.print(f"Top-1 of the dense network: {ablation.untouched:.4f}. The table is in {table}.")


def write(found: dict[float, Any], ablation: Ablation, table: Path) -> None:
    """Writes ablation.json and the table."""
    content = {
        "model": Path(_MODEL.value).name,
        "untouched": ablation.untouched,
        "seconds": ablation.steps.seconds,
        "rows": [
            {"asked": speedup, "setting": combination.title, **row}
            for speedup, rows in found.items()
            for combination, row in rows
        ],
    }
    write_json(ablation.steps.folder / "ablation.json", content)
    with atomic_write(table, "--markdown") as temporary:
        temporary.write_text(page(found, ablation))


def page(found: dict[float, Any], ablation: Ablation) -> str:
    """The Markdown file."""
    name = Path(_MODEL.value).name
    parts = [
        "# What each part of the method is worth",
        f"Written by `python benchmarks/ablation.py`, whose docstring says what the rows are. "
        f"Network: {name}, top-1 {ablation.untouched:.4f} on {ablation.images.test_images:,} test "
        f"images as it is. Times: {runtime_title(_RUNTIME.value)}, batches of {_BATCH.value}, "
        f"threads: {_THREADS.value}; in turns with the dense network; both have their batch norms "
        f"folded. Fine-tuning: {_STEPS.value} steps of {_TRAIN_BATCH.value} images; mean of "
        f"{_TUNINGS.value}, each with other images.",
    ]
    for speedup, rows in found.items():
        table = markdown(_COLUMNS, [cells(*each) for each in rows])
        parts += [f"## {speedup:g} times faster asked", table]
    return "\n\n".join(parts) + "\n"


def main(argv: list[str]) -> int:
    """Does what the module says; returns the exit status."""
    return command("ablation", argv, lambda: run(*check_flags()))


if __name__ == "__main__":
    app.run(main)
