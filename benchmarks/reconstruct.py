"""What `reconstruct` brings back before any fine-tuning, and what speed `compress` can afford then.

    python -m benchmarks.reconstruct --models=demo/network.keras,resnet20.keras --speedup=2

Every network is compressed twice: with config.reconstruct=0 first, whose result then goes through
both halves of `reconstruct`, and as `compress` is by default, which plans on what remains. With
--tune_images the first plan's network is fine-tuned too, without labels, as planned and after both
halves: what was brought back must not be in the way. Judged on all test images of Fashion-MNIST,
see --data. Some minutes for a network of 28 x 28.
"""

import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from absl import app, flags
from rich.console import Console
from rich.table import Table

from benchmarks import images

_MODELS = flags.DEFINE_list("models", ["demo/network.keras"], "Trained networks that give logits.")
_DATA = flags.DEFINE_string("data", images.FASHION, "See `benchmarks.images.fashion`.")
_IMAGES = flags.DEFINE_integer("images", 512, "Training images given to compress.", 16)
_TEST = flags.DEFINE_integer("test_images", 10_000, "Images to judge on.", 1)
_SPEEDUP = flags.DEFINE_float("speedup", 2.0, "Asked for.", 1.01)
_SECONDS = flags.DEFINE_float("seconds", 60.0, "Of the second half, at most.", 0.0)
_TUNE = flags.DEFINE_integer("tune_images", 0, "To fine-tune on; 0: no fine-tuning.", 0)
_EPOCHS = flags.DEFINE_integer("tune_epochs", 2, "Of that.", 1)
_BATCH = flags.DEFINE_integer("batch_size", 16, "Images per call when time is measured.", 1)


def main(_) -> None:
    """Prints the table."""
    import keras

    import espace_tf

    data = images.fashion(_DATA.value, holdout=1, test_images=_TEST.value, seed=0)
    x, y = data.calibration(_IMAGES.value)
    names = ("network", "top-1", "compressed", "least squares", "and Adam", "seconds")
    table = Table(title=f"reconstruct; judged on {_TEST.value} images")
    tuned = ("then tuned", "tuned as planned") if _TUNE.value else ()
    for name in (*names, "as compress returns it", *tuned):
        table.add_column(name)
    for path in map(Path, _MODELS.value):
        model = keras.models.load_model(path, compile=False)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", espace_tf.EspaceWarning)
            options = {"batch_size": _BATCH.value, "cache_dir": folder}
            config = espace_tf.EspaceConfig(reconstruct=0, **options)
            asked = {"speedup": _SPEEDUP.value, "verbose": 0}
            small = espace_tf.compress(model, (x, y), config=config, **asked)
            found, seconds = [_top1(model, data), _at(small, data)], []
            for limit in (0.0, _SECONDS.value):
                start = time.perf_counter()
                espace_tf.reconstruct(small, x, teacher=model, seconds=limit, verbose=0)
                seconds.append(time.perf_counter() - start)
                found.append(f"{_top1(small, data):.4f}")
            planned = espace_tf.apply(model, small.espace_plan)
            rows = [_tuned(each, model, data) for each in (small, planned)] if tuned else []
            config = espace_tf.EspaceConfig(reconstruct=_SECONDS.value, **options)
            small = espace_tf.compress(model, (x, y), config=config, **asked)
        times = " + ".join(f"{each:.0f}" for each in seconds)
        table.add_row(path.stem, f"{found[0]:.4f}", *found[1:], times, _at(small, data), *rows)
    Console(width=160).print(table)


def _at(small, data: images.Images) -> str:
    return f"{_top1(small, data):.4f} at {small.espace_plan.measured_speedup:.2f}"


def _tuned(small, model, data: images.Images) -> str:
    import espace_tf

    x, _ = data.calibration(_TUNE.value)
    espace_tf.fine_tune(small, x, teacher=model, epochs=_EPOCHS.value, verbose=0)
    return f"{_top1(small, data):.4f}"


def _top1(model, data: images.Images) -> float:
    scores = ((model.predict_on_batch(x), y) for x, y in data.test)
    return float(np.mean(np.concatenate([found.argmax(-1) == y for found, y in scores])))


if __name__ == "__main__":
    app.run(main)
