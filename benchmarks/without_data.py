"""What a compression is worth without images: top-1 of plans of one speed made from four sources.

    python -m benchmarks.without_data --model=demo/network.keras --speedups=1.5,2

The sources are the weights alone, noise, inputs made up from the batch normalisations
(`espace_tf.analysis.synthetic`), and real training images. Nothing is trained. Judged on the demo's
2,000 test images of Fashion-MNIST, or those of --data; a minute for the demo's network.
"""

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

_MODEL = flags.DEFINE_string("model", "demo/network.keras", "A trained network, a .keras file.")
_DATA = flags.DEFINE_string(
    "data", "demo/fashion_mnist_subset.npz", "x_train, x_test, y_test; uint8."
)
_SPEEDUPS = flags.DEFINE_list("speedups", ["1.5", "2"], "Predicted speeds to plan for.")
_IMAGES = flags.DEFINE_integer("images", 128, "How many inputs each source gives.", 16)


def main(_) -> None:
    """Prints the table."""
    import keras

    import espace_tf
    from espace_tf.analysis.synthetic import synthetic_inputs
    from espace_tf.network.network import Network

    model = keras.models.load_model(_MODEL.value)
    network = Network.read(model).copied()
    with np.load(_DATA.value) as stored:
        x, x_test, y_test = (stored[name] for name in ("x_train", "x_test", "y_test"))
    shape = tuple(model.input_shape[1:])
    x, x_test = (each.reshape(-1, *shape).astype("float32") / 255 for each in (x, x_test))
    sources = {
        "the weights alone": None,
        "noise": np.random.default_rng(0).random((_IMAGES.value, *shape), np.float32),
        "made up from batch norms": synthetic_inputs(network, _IMAGES.value, seed=0),
        "real images": x[: _IMAGES.value],
    }

    def top_1(judged: keras.Model) -> str:
        return f"{np.mean(judged.predict(x_test, verbose=0).argmax(-1) == y_test):.4f}"

    table = Table(title=f"top-1; as it is: {top_1(model)}")
    for name in ("source", *(f"{speed} x" for speed in _SPEEDUPS.value)):
        table.add_column(name)
    for name, inputs in sources.items():
        analysis = espace_tf.analyze(model, inputs, verbose=0)
        cells = []
        for speed in map(float, _SPEEDUPS.value):
            small = espace_tf.apply(model, espace_tf.plan(analysis, speedup=speed))
            cells.append(top_1(small))
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    app.run(main)
