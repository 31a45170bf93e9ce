"""The parts of what `benchmarks.applications` does with one network, each in its own process."""

import resource
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.steps import write_json

# One network of each of keras.applications.
FAMILIES = (
    *("MobileNetV3Small", "MobileNet", "MobileNetV2", "MobileNetV3Large", "NASNetMobile"),
    *("EfficientNetB0", "EfficientNetV2B0", "DenseNet121", "ResNet50", "ResNet50V2"),
    *("InceptionV3", "Xception", "ConvNeXtTiny", "InceptionResNetV2", "VGG16", "VGG19"),
)
PARTS = ("compress", "measure", "tune")
_IMAGES, _REPEATS = 64, 100
_CALIBRATION = 512  # of images that are given; the others judge


def do(part: str, network: str, data: str | None, folder: Path, **asked: Any) -> None:
    """Does a part, and writes what came of it to PART.json.

    Args:
        part: one of PARTS.
        network: of keras.applications, or a file.
        data: an .npy file of images as a file's network takes them.
        folder: of this network alone.
        **asked: speedup, min_agreement, runtime and reconstruct.
    """
    model = _network(network, trained=data is not None)
    images = None if data is None else np.load(data, mmap_mode="r")
    found = {"compress": _compress, "measure": _measure, "tune": _tune}[part](
        model, images, folder, **asked
    )
    found["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    write_json(folder / f"{part}.json", found)


def _network(name: str, trained: bool) -> Any:
    """The same in every process: weights that are not read from a file are drawn from a seed."""
    import keras

    if trained:
        from espace_tf.bin.inputs import models

        return models.load(Path(name))
    keras.utils.set_random_seed(0)
    # MobileNetV3 takes maps of any size if no size is given, those of its weights if they are.
    size = {"input_shape": (224, 224, 3)} if name.startswith("MobileNetV3") else {}
    return getattr(keras.applications, name)(weights=None, **size)


def _compress(
    model: Any,
    images: np.ndarray | None,
    folder: Path,
    *,
    speedup: float,
    min_agreement: float | None,
    runtime: str,
    reconstruct: float,
) -> dict[str, Any]:
    import espace_tf

    if images is None:
        shape = (_IMAGES, *model.inputs[0].shape[1:])
        images = np.random.default_rng(0).random(shape, np.float32)
    config = espace_tf.EspaceConfig(runtime=runtime, reconstruct=reconstruct)
    asked = {"speedup": speedup, "min_agreement": min_agreement}
    options = {**asked, "config": config, "verbose": 0}
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        small = espace_tf.compress(model, np.array(images[:_CALIBRATION]), **options)
    seconds = time.perf_counter() - start
    small.save(folder / "compressed.keras")
    made, kind = small.espace_plan, espace_tf.EspaceWarning
    return {
        "seconds": seconds,
        "landed": made.measured_speedup,
        "predicted": made.predicted_speedup,
        "changed": len(made.layers),
        "warnings": [str(each.message) for each in told if issubclass(each.category, kind)],
    }


def _measure(
    model: Any, images: np.ndarray | None, folder: Path, *, runtime: str, **_: float
) -> dict[str, Any]:
    """The speed in a process that did not compress; agreement on images that did not calibrate."""
    import espace_tf

    small = _small(folder)
    _, row = espace_tf.benchmark(model, small, runtime=runtime, repeats=_REPEATS)
    return {"speedup": row.speedup, **_agreements(model, small, images)}


def _tune(model: Any, images: np.ndarray, folder: Path, **_: Any) -> dict[str, Any]:
    """The same after `fine_tune` with its defaults, without labels."""
    import espace_tf

    small, start = _small(folder), time.perf_counter()
    espace_tf.fine_tune(small, np.array(images[:_CALIBRATION]), teacher=model, verbose=0)
    return {"seconds": time.perf_counter() - start, **_agreements(model, small, images)}


def _small(folder: Path) -> Any:
    from espace_tf.bin.inputs import models

    return models.load(folder / "compressed.keras")


def _agreements(model: Any, small: Any, images: np.ndarray | None) -> dict[str, list[float]]:
    """Of every output: how often the largest value is the same, and the mean cosine."""
    if images is None:
        return {}
    import tensorflow as tf

    held = np.array(images[_CALIBRATION:])
    pairs = [tf.nest.flatten(each.predict(held, verbose=0)) for each in (model, small)]
    top, cosine = [], []
    for one, other in zip(*pairs, strict=True):
        one, other = (np.reshape(each, (len(held), -1)).astype(float) for each in (one, other))
        top.append(float((one.argmax(1) == other.argmax(1)).mean()))
        sizes = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
        cosine.append(float(((one * other).sum(1) / np.maximum(sizes, 1e-30)).mean()))
    return {"top1": top, "cosine": cosine}
