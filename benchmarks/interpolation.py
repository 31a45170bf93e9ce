"""What showing a mean of several neighbours, instead of the nearest one, would save.

    python benchmarks/interpolation.py --model=teacher.keras --plan=plan.json

takes a plan with masks (as `Plan.save` writes it, for this network) and compares, for each of its
masks, a skipped position that shows its nearest computed neighbour (what espace_tf does) with one
that shows a weighted sum of several. The weights are the best there are for the calibration
images: of every position its own, by least squares over images and channels. Judged on other
images:

- response error: nearest over weighted, squared, in the layer itself;
- loss: the Kullback-Leibler divergence to the untouched network's output, in nats, with this mask
  alone, with all masks, with the plan's ranks alone, and with the whole plan (nearest).

A weighted position costs the time of its products, and the map between two layers must be written
whole, where a table looks through nearest neighbours for nothing. So weights pay only where masks
lose much of what the whole plan loses.
"""

import sys
from pathlib import Path

import numpy as np
from absl import app, flags
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1]))

import espace_tf
from benchmarks import images
from benchmarks.neighbours import Comparison
from benchmarks.steps import command, markdown, rich_table
from espace_tf.bin.inputs import models
from espace_tf.files import atomic_write, output_path

_MODEL = flags.DEFINE_string("model", None, "A trained classifier, a .keras file.")
_PLAN = flags.DEFINE_string("plan", None, "A plan for it, with masks: a .json file.")
_DATA = flags.DEFINE_string("data", images.FASHION, "Images: a folder of idx files or an .npz.")
_IMAGES = flags.DEFINE_integer("images", 64, "To find weights on, and as many to judge on.", 1)
_NEIGHBOURS = flags.DEFINE_integer("neighbours", 4, "Computed positions in a sum.", 1)
_MARKDOWN = flags.DEFINE_string("markdown", None, "Where to write the table, a .md file.")

_COLUMNS = ("layer", "map", "keep", "response error", "loss, nearest", "loss, weighted")


def table(compared: Comparison, count: int) -> list[tuple[str, ...]]:
    """The rows of the table."""
    rows, nearest, weighted = [], {}, {}
    for path, site in compared.sites.items():
        nearest[path], weighted[path] = compared.matrices(path, count)
        ratio = compared.error_ratio(path, nearest[path], weighted[path])
        losses = [compared.loss({path: each[path]}) for each in (nearest, weighted)]
        size = site.output_sizes[0]
        keep = np.mean(np.diagonal(nearest[path]))
        shares = (f"{size[0]} x {size[1]}", f"{keep:.2f}", f"{ratio:.1f}")
        rows.append((path, *shares, *(f"{loss:.5f}" for loss in losses)))
    every = [f"{compared.loss(each):.5f}" for each in (nearest, weighted)]
    return [
        *rows,
        ("all masks", "", "", "", *every),
        ("all ranks, no mask", "", "", "", f"{compared.loss_of_plan(masks=False):.5f}", ""),
        ("the plan", "", "", "", f"{compared.loss_of_plan(masks=True):.5f}", ""),
    ]


def run() -> None:
    """Compares, prints and writes."""
    if _MARKDOWN.value is not None:
        output_path(_MARKDOWN.value, "--markdown", suffix=".md")
    model = models.load(models.check(_MODEL.value, "--model"), "--model")
    plan = espace_tf.Plan.load(_PLAN.value)
    if all(layer.positions is None for layer in plan.layers.values()):
        raise ValueError(f"--plan must have masks. Received: {_PLAN.value}, which has none")
    data = images.fashion(_DATA.value, holdout=1, test_images=1, seed=0)
    x, _ = data.calibration(2 * _IMAGES.value)
    rows = table(Comparison(model, plan, x), _NEIGHBOURS.value)
    Console().print(rich_table(Path(_PLAN.value).name, _COLUMNS, rows))
    if _MARKDOWN.value is not None:
        with atomic_write(_MARKDOWN.value, "--markdown") as temporary:
            temporary.write_text(markdown(_COLUMNS, rows) + "\n")


def main(argv: list[str]) -> int:
    """Does what the module says; returns the exit status."""
    return command("interpolation", argv, run)


if __name__ == "__main__":
    flags.mark_flags_as_required(["model", "plan"])
    app.run(main)
