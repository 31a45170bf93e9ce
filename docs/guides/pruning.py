"""With pruning and QAT: the script of docs/guides/pruning.md.

    python docs/guides/pruning.py --output_dir=out/pruning

Compresses a ResNet-20, takes it to tf_keras and trains it there --steps steps with pruned weights,
with weights in clusters, and for int8, with tensorflow-model-optimization's own calls. Prints the
accuracy of each; of the .tflite files also the bytes and how many of their operations are in float.
About 20 minutes on 2 cores; without --model the network is trained first.
"""

import contextlib
import io
import warnings
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from absl import app, flags
from rich.console import Console

import espace_tf
from espace_tf import zoo
from espace_tf.bin.frame import tables
from espace_tf.bin.inputs import array_files

_DEMO = Path(__file__).parents[2] / "demo"
_MODEL = flags.DEFINE_string("model", None, "A trained Keras 3 network; none: ResNet-20, untrained")
_DATA = flags.DEFINE_string("data", str(_DEMO / "fashion_mnist_subset.npz"), "Its images.")
_IMAGES = flags.DEFINE_integer("images", 4000, "Training images used, at most.", 1)
_EPOCHS = flags.DEFINE_integer("epochs", 8, "Of training, if there is no --model.", 1)
_SPEEDUP = flags.DEFINE_float("speedup", 1.5, "How many times faster.")
_STEPS = flags.DEFINE_integer("steps", 50, "Of pruning, of clustering and of QAT.", 1)
_OUTPUT = flags.DEFINE_string("output_dir", "out/pruning", "Where the files go.")

BATCH = 64
# What tfmot trains is trained already: of QAT only the rounding is new to it.
TUNING, ROUNDING = 1e-4, 1e-5


def original(data: array_files.Data) -> keras.Model:
    """The network to start with."""
    if _MODEL.value is not None:
        return keras.models.load_model(_MODEL.value)
    model = zoo.resnet(data.x.shape[1:], 10)
    steps = _EPOCHS.value * -(-len(data.x) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(0.01, steps)
    model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy")
    model.fit(data.x, data.y, batch_size=BATCH, epochs=_EPOCHS.value, verbose=2)
    return model


def trained(
    model: tf_keras.Model, data: array_files.Data, *callbacks, rate: float = TUNING
) -> tf_keras.Model:
    """The model after --steps steps."""
    # Logits, or probabilities, which sum to 1.
    logits = not np.allclose(model.predict(data.x[:BATCH], verbose=0).sum(-1), 1, atol=1e-3)
    loss = tf_keras.losses.SparseCategoricalCrossentropy(from_logits=logits)
    model.compile(tf_keras.optimizers.Adam(rate), loss)
    batches = tf.data.Dataset.from_tensor_slices((data.x, data.y)).shuffle(len(data.x), seed=0)
    batches = batches.repeat().batch(BATCH).take(_STEPS.value)
    model.fit(batches, callbacks=list(callbacks), verbose=0)
    return model


def int8_file(quantized: tf_keras.Model) -> bytes:
    """The .tflite file of a network that was trained for int8: it holds its ranges itself."""
    converter = tf.lite.TFLiteConverter.from_keras_model(quantized)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore", UserWarning)  # of statistics, which are not needed
        return converter.convert()


def float_operations(content: bytes) -> int:
    """How many operations of a .tflite file give floats, besides the last one's conversion."""
    from ai_edge_litert.interpreter import Interpreter

    lite = Interpreter(model_content=content)
    types = {each["index"]: each["dtype"] for each in lite.get_tensor_details()}
    exits = {each["index"] for each in lite.get_output_details()}
    return sum(
        types[index] == np.float32 and not (each["op_name"] == "DEQUANTIZE" and index in exits)
        for each in lite._get_ops_details()
        for index in each["outputs"]
    )


def answers(content: bytes, images: np.ndarray) -> np.ndarray:
    """What a .tflite file gives for images."""
    from ai_edge_litert.interpreter import Interpreter

    lite = Interpreter(model_content=content)
    (entry,), (exit_,) = lite.get_input_details(), lite.get_output_details()
    lite.resize_tensor_input(entry["index"], images.shape)
    lite.allocate_tensors()
    lite.set_tensor(entry["index"], images)
    lite.invoke()
    return lite.get_tensor(exit_["index"])


def main(argv: list[str]) -> None:
    """The steps of the guide."""
    del argv
    # Imported after espace_tf.tfmot, which keeps `tf.keras` what it is.
    espace_tf.tfmot.quantize_scope()
    import tensorflow_model_optimization as tfmot

    output = Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(0)
    data = array_files.load(_DATA.value).first(_IMAGES.value)

    def top1(found: np.ndarray) -> float:
        return float(np.mean(found.argmax(-1) == data.y_test))

    # 1. Compress, and train with the original as teacher: all of it as ever, in Keras 3.
    given = original(data)
    given.save(output / "original.keras")
    small = espace_tf.compress(given, data.train, speedup=_SPEEDUP.value)
    espace_tf.fine_tune(small, data.train, teacher=given)
    small.save(output / "compressed.keras")
    rows = [("original", top1(given.predict(data.x_test, verbose=0)), "")]

    # 2. To tf_keras, where tensorflow-model-optimization lives.
    legacy = espace_tf.tfmot.from_keras(small)
    rows.append(("compressed", top1(legacy.predict(data.x_test, verbose=0)), ""))

    # 3. Prune: half of the weights of every convolution become 0.
    sparsity = tfmot.sparsity.keras
    often = max(1, _STEPS.value // 10)
    schedule = sparsity.PolynomialDecay(0.0, 0.5, 0, _STEPS.value // 2, frequency=often)
    pruned = sparsity.prune_low_magnitude(legacy, pruning_schedule=schedule)
    pruned = sparsity.strip_pruning(trained(pruned, data, sparsity.UpdatePruningStep()))
    kernels = [weight for weight in pruned.get_weights() if weight.ndim > 1]
    zeros = sum((kernel == 0).sum() for kernel in kernels) / sum(each.size for each in kernels)
    found = top1(pruned.predict(data.x_test, verbose=0))
    rows.append(("pruned", found, f"{zeros:.0%} of the weights are 0"))

    # 4. Cluster: sixteen values a kernel.
    clustering = tfmot.clustering.keras
    evenly = clustering.CentroidInitialization.KMEANS_PLUS_PLUS
    clustered = trained(
        clustering.cluster_weights(espace_tf.tfmot.from_keras(small), 16, evenly), data
    )
    clustered = clustering.strip_clustering(clustered)
    most = max(len(np.unique(each)) for each in clustered.get_weights() if each.ndim > 1)
    found = top1(clustered.predict(data.x_test, verbose=0))
    rows.append(("clustered", found, f"at most {most} values in a kernel"))

    # 5. Train for int8, and write the file.
    annotated = espace_tf.tfmot.quantize_annotate(espace_tf.tfmot.from_keras(small))
    with espace_tf.tfmot.quantize_scope():
        quantized = tfmot.quantization.keras.quantize_apply(annotated)
    espace_tf.tfmot.calibrate(quantized, data.x)
    qat = int8_file(trained(quantized, data, rate=ROUNDING))
    (output / "qat.int8.tflite").write_bytes(qat)

    # 6. The file that needs no training, for comparison.
    path = output / "small.int8.tflite"
    espace_tf.export_tflite(small, path, quantize="int8", representative_data=data.x)
    for name, content in (("int8 file, QAT", qat), ("int8 file, no training", path.read_bytes())):
        words = f"{len(content):,} bytes, {float_operations(content)} operations in float"
        rows.append((name, top1(answers(content, data.x_test)), words))
    rows = [(name, f"{accuracy:.4f}", words) for name, accuracy, words in rows]
    Console(width=100).print(tables.grid(f"{_STEPS.value} steps each", ["", "top-1", ""], rows))


if __name__ == "__main__":
    app.run(main)
