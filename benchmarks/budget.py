"""What `compress(model, data)` makes of trained networks, on images that it never saw.

    python -m benchmarks.budget --models=demo/network.keras,resnet20.keras --images=2048

No speed is asked for: the loss on held-out images is the budget. Judged on all test images of
Fashion-MNIST, see --data. A minute or two for a network of 28 x 28.
"""

import time
from pathlib import Path

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import images

_MODELS = flags.DEFINE_list("models", ["demo/network.keras"], "Trained networks that give logits.")
_DATA = flags.DEFINE_string("data", images.FASHION, "See `benchmarks.images.fashion`.")
_IMAGES = flags.DEFINE_integer("images", 2048, "Training images given to compress.", 16)


def main(_) -> None:
    """Prints the table."""
    import keras

    import espace_tf

    data = images.fashion(_DATA.value, holdout=1, test_images=10_000, seed=0)
    x, y = next(iter(data.train.map(data.decode).batch(_IMAGES.value)))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    table = Table(title=f"compress(model, data); judged on {data.test_images} images")
    for name in ("network", "times faster", "loss", "after", "top-1", "after", "seconds"):
        table.add_column(name)
    for path in map(Path, _MODELS.value):
        model = keras.models.load_model(path, compile=False)
        start = time.perf_counter()
        small = espace_tf.compress(model, (x.numpy(), y.numpy()), verbose=0)
        seconds = time.perf_counter() - start
        figures = []
        for judged in (model, small):
            judged.compile(loss=loss, metrics=["accuracy"])
            figures.append(judged.evaluate(data.test, verbose=0))
        cells = (f"{figure:.4f}" for figure in np.transpose(figures).ravel())
        speed = f"{small.espace_plan.measured_speedup:.2f}"
        table.add_row(path.stem, speed, *cells, f"{seconds:.0f}")
    Console().print(table)


if __name__ == "__main__":
    app.run(main)
