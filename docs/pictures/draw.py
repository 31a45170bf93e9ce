"""The pictures of docs/how.md, from the demo's network and data.

    python docs/pictures/draw.py --output_dir=docs/pictures

Takes the statistics of demo/network.keras on 256 of the shipped images and draws spectra.png,
masks.png and fused.png. Nothing is timed: they are alike on every machine.
"""

from pathlib import Path

import keras
import matplotlib
import numpy as np
from absl import app, flags

import espace_tf
from espace_tf.analysis.statistics import input_moments, output_statistics
from espace_tf.files import atomic_write
from espace_tf.keras_layers import FusedGraph
from espace_tf.network import graph
from espace_tf.network.sites import read_sites
from espace_tf.numerics.factors import plain_factors, reconstruct
from espace_tf.objectives import targets
from espace_tf.records.analysis import SiteAnalysis

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_ROOT = Path(__file__).parent.parent.parent
_OUTPUT = flags.DEFINE_string("output_dir", str(Path(__file__).parent), "Where they go.")
_IMAGES = flags.DEFINE_integer("images", 256, "Images that the statistics are taken from.", 16)

BLUE, ORANGE, GREY = "#3f51b5", "#ef6c00", "#90a4ae"
OURS = ("DecomposedConv2D", "MaskedConv2D", "FusedGraph")


def statistics(model: keras.Model, images: np.ndarray, labels: np.ndarray) -> list[SiteAnalysis]:
    """What is known of each convolution before anything is timed."""
    sites = [site for site in read_sites(model) if not site.skip]
    batches = [(images[at : at + 16], labels[at : at + 16]) for at in range(0, len(images), 16)]
    moments = input_moments(model, sites, batches, len(images), seed=0)
    target = targets.resolve(model, None, batches[0], 0).target
    felt = output_statistics(model, sites, batches, target, lambda site: True)
    layers = graph.layers(model)
    return [
        SiteAnalysis(
            site=site,
            kernel=layers[site.path].kernel.numpy(),
            **moments[site.path],
            **felt[site.path],
        )
        for site in sites
    ]


def spectra(sites: list[SiteAnalysis]) -> Figure:
    """Response error by rank of three layers: plain SVD against whitened and refitted factors."""
    sites = [site for site in sites if site.site.in_channels > 1][:3]
    figure, axes = pyplot.subplots(1, len(sites), figsize=(9, 2.8), sharey=True)
    for axis, site in zip(axes, sites, strict=True):
        ours = site.decomposition("vertical").errors
        ranks = np.unique(np.linspace(1, len(ours) - 1, 16).astype(int))
        axis.plot(ranks, [_plain_error(site, rank) for rank in ranks], color=GREY, label="plain")
        axis.plot(ranks, ours[ranks], color=BLUE, label="whitened, refitted")
        axis.set(title=site.site.path, xlabel="rank", yscale="log", ylim=(1e-5, 1))
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("error of the responses")
    axes[0].legend(frameon=False)
    return figure


def _plain_error(site: SiteAnalysis, rank: int) -> float:
    """Relative squared response error of the plain truncated decomposition."""
    change = site.kernel - reconstruct(plain_factors(site.kernel, int(rank)))
    kernels = (each.reshape(-1, each.shape[-1]) for each in (change, site.kernel))
    lost, whole = (np.vdot(each, site.covariance[0] @ each) for each in kernels)
    return float(lost / whole)


def masks(site: SiteAnalysis, image: np.ndarray) -> Figure:
    """An image, the damage of skipping each position of a layer's map, and masks over it."""
    size = site.site.output_sizes[0]
    kinds = [("impact", 0.5), ("impact", 0.25), ("rows", 0.5), ("grid", 0.25)]
    figure, axes = pyplot.subplots(1, 2 + len(kinds), figsize=(11, 2.2))
    for axis in axes:
        axis.set_axis_off()
        axis.imshow(image, cmap="gray_r", extent=(-0.5, size[1] - 0.5, size[0] - 0.5, -0.5))
    axes[0].set_title("an image")
    axes[1].imshow(site.score, cmap="inferno")
    axes[1].set_title("damage")
    for axis, (family, keep) in zip(axes[2:], kinds, strict=True):
        rows, columns = np.divmod(site.positions(family, keep), size[1])
        axis.scatter(columns, rows, s=4, color=ORANGE, linewidths=0)
        axis.set_title(f"{family}, {keep:.0%}")
    return figure


def fused(model: keras.Model) -> Figure:
    """The layers of a network, of the compressed one, of the stripped one, and its steps."""
    plan = espace_tf.Plan.uniform(model, rank_ratio=0.25, keep=0.5)
    small = espace_tf.apply(model, plan)
    fast = espace_tf.strip(small)
    (graph,) = [layer for layer in fast.layers if isinstance(layer, FusedGraph)]
    steps = [f"convolve: {layer}" if layer else "pool" for layer in graph.step_layers()]
    columns = {
        "as given": [_words(layer) for layer in model.layers],
        "compressed": [_words(layer) for layer in small.layers],
        "stripped": [_words(layer) for layer in fast.layers],
        "steps of the fused graph": steps,
    }
    figure, axis = pyplot.subplots(figsize=(10, 5.5))
    tallest = max(map(len, columns.values()))
    for place, (title, words) in enumerate(columns.items()):
        _column(axis, place, title, words, tallest)
    axis.set(xlim=(-0.5, len(columns) - 0.5), ylim=(-tallest, 1))
    axis.set_axis_off()
    return figure


def _words(layer: keras.layers.Layer) -> str:
    return type(layer).__name__


def _column(axis: Axes, place: int, title: str, words: list[str], tallest: int) -> None:
    """One list of boxes under its title."""
    axis.text(place, 0.4, title, ha="center", weight="bold")
    height = tallest / len(words) if title == "stripped" else 1
    for index, word in enumerate(words):
        ours = word in OURS or ":" in word
        low = -(index + 1) * height
        box = pyplot.Rectangle(
            (place - 0.45, low + 0.08), 0.9, height - 0.16, color=BLUE if ours else GREY, alpha=0.25
        )
        axis.add_patch(box)
        axis.text(place, low + height / 2, word, ha="center", va="center", size=8)


def main(argv: list[str]) -> None:
    """Draws all of them."""
    del argv
    matplotlib.rcParams["font.size"] = 9
    model = keras.models.load_model(_ROOT / "demo" / "network.keras")
    with np.load(_ROOT / "demo" / "fashion_mnist_subset.npz") as data:
        images = data["x_train"][: _IMAGES.value, ..., None].astype("float32") / 255
        labels = data["y_train"][: _IMAGES.value]
    sites = statistics(model, images, labels)
    figures = {
        "spectra.png": spectra(sites),
        "masks.png": masks(sites[0], images[0, ..., 0]),
        "fused.png": fused(model),
    }
    for name, figure in figures.items():
        with atomic_write(Path(_OUTPUT.value, name)) as temporary:
            figure.savefig(temporary, format="png", bbox_inches="tight", dpi=110)
        pyplot.close(figure)


if __name__ == "__main__":
    app.run(main)
