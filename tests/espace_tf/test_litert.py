"""The delegate for LiteRT: its options, its threads, files that it must refuse."""

import threading
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from espace_tf import kernels, litert
from espace_tf.deploy import flatbuffer, fused_file
from espace_tf.rewriting.fuse import fuse

SEED = 3
pytestmark = pytest.mark.skipif(
    not (Path(kernels.__file__).parent / "_litert.so").is_file(),
    reason="the delegate was not built",
)


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(SEED)
    image = keras.Input((9, 9, 3), name="image")
    x = keras.layers.Conv2D(20, 3, padding="same", activation="relu")(image)
    left, right = keras.layers.MaxPooling2D()(x), keras.layers.Conv2D(6, 1, strides=2)(x)
    return keras.Model(image, [left, keras.layers.Cropping2D(((0, 1), (0, 1)))(right)])


@pytest.fixture(scope="module")
def contents(model):
    """By kernel: a file of the model, all of which is one stretch."""
    return {name: fused_file.convert(fuse(model), custom=name == "custom")
            for name in ("fused", "custom")}  # fmt: skip


def images(count: int) -> np.ndarray:
    return np.random.default_rng(SEED).random((count, 9, 9, 3), np.float32)


def claimed(interpreter) -> bool:
    names = [operator["op_name"] for operator in interpreter._get_ops_details()]
    return "DELEGATE" in names or names.count("EspaceFusedGraph") > 1


def loaded(content: bytes, library=Interpreter, *, threads=None, **options):
    delegates = [litert.delegate(strict=True, **options)]
    return library(model_content=content, num_threads=threads, experimental_delegates=delegates)


def run(interpreter, batch: np.ndarray) -> list[np.ndarray]:
    (entry,) = interpreter.get_input_details()
    interpreter.resize_tensor_input(entry["index"], batch.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(entry["index"], batch)
    interpreter.invoke()
    return [interpreter.get_tensor(each["index"]) for each in interpreter.get_output_details()]


def agree(model, found: list[np.ndarray], batch: np.ndarray) -> None:
    expected = sorted((np.asarray(each) for each in model(batch)), key=lambda each: each.shape)
    for right, got in zip(expected, sorted(found, key=lambda each: each.shape), strict=True):
        np.testing.assert_allclose(got, right, atol=2e-6 * max(1, np.abs(right).max()))


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
@pytest.mark.parametrize("kernel", ["fused", "custom"])
@pytest.mark.parametrize("library", [Interpreter, tf.lite.Interpreter], ids=["litert", "tf"])
def test_batches_and_threads(library, kernel, contents, model):
    for threads in (None, 1, 3):
        interpreter = loaded(contents[kernel], library, threads=threads)
        assert claimed(interpreter)
        for count in (1, 5, 2, 64):
            agree(model, run(interpreter, images(count)), images(count))
        assert {len(each) for each in run(interpreter, images(0))} == {0}


def test_a_number_of_threads_of_its_own(contents, model):
    interpreter = loaded(contents["fused"], num_threads=2)
    agree(model, run(interpreter, images(40)), images(40))


def test_without_the_delegate_its_layers_run(contents, model):
    interpreter = Interpreter(model_content=contents["fused"])
    agree(model, run(interpreter, images(4)), images(4))
    with pytest.raises(RuntimeError, match="custom op"):
        run(Interpreter(model_content=contents["custom"]), images(1))


def test_interpreters_of_several_threads_at_once(contents, model):
    batches, problems = [images(count) for count in (1, 8, 33)], []
    shared = litert.delegate(num_threads=2, strict=True)

    def work(batch: np.ndarray) -> None:
        try:
            delegates = [shared]
            each = Interpreter(model_content=contents["fused"], experimental_delegates=delegates)
            for _ in range(30):
                agree(model, run(each, batch), batch)
        except Exception as error:
            problems.append(error)

    workers = [threading.Thread(target=work, args=(batch,)) for batch in batches]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not problems, problems


def test_an_interpreter_of_a_file(contents, model, tmp_path, monkeypatch):
    path = tmp_path / "model.tflite"
    path.write_bytes(contents["fused"])
    assert claimed(litert.interpreter(path, num_threads=2))
    monkeypatch.setattr(kernels, "__file__", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="make native"):
        litert.delegate()
    with pytest.warns(RuntimeWarning, match="layer by layer"):
        plain = litert.interpreter(path)
    agree(model, run(plain, images(2)), images(2))


@pytest.mark.parametrize(
    ("value", "error"), [(0, ValueError), (1.5, TypeError), (1025, ValueError)]
)
def test_numbers_of_threads_that_make_no_sense(value, error):
    with pytest.raises(error, match="num_threads"):
        litert.delegate(num_threads=value)


@pytest.mark.parametrize("options", [{"threads": 1}, {"num_threads": "x"}, {"strict": 2}])
def test_options_that_the_delegate_does_not_know(options):
    from ai_edge_litert.interpreter import load_delegate

    with pytest.raises(ValueError, match="num_threads|strict"):
        load_delegate(str(litert.library()), options)


def changed(content: bytes, change) -> bytes:
    file = flatbuffer.read(content)
    main = file.subgraphs[0]
    (operator,) = main.operators
    change(file, main, operator)
    return flatbuffer.write(file)


def spoil_magic(file, main, operator):
    buffer = file.buffers[main.tensors[operator.inputs[0]].buffer]
    buffer.data = np.concatenate([np.zeros(4, np.uint8), buffer.data[4:]])


def spoil_last_word(file, main, operator):
    buffer = file.buffers[main.tensors[operator.inputs[0]].buffer]
    buffer.data = np.concatenate([buffer.data[:-4], np.full(4, 127, np.uint8)])


def drop_a_weight(file, main, operator):
    operator.inputs = operator.inputs[:-1]


def swap_weights(file, main, operator):
    operator.inputs = [*operator.inputs[:2], *reversed(operator.inputs[2:])]


def another_output(file, main, operator):
    main.tensors[operator.outputs[0]].shape = [1, 3, 3, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (spoil_magic, "not those of a stretch"),
        (spoil_last_word, "program must be one"),
        (drop_a_weight, "weights"),
        (swap_weights, "bytes"),
        (another_output, "output 0 is not one of"),
    ],
)
def test_stretches_that_do_not_fit_together(change, words, contents):
    """A strict delegate names the reason; another one leaves them to the runtime."""
    content = changed(contents["custom"], change)
    with pytest.raises(RuntimeError, match=words):
        loaded(content).allocate_tensors()
    lenient = Interpreter(model_content=content, experimental_delegates=[litert.delegate()])
    with pytest.raises(RuntimeError, match="custom op"):
        lenient.allocate_tensors()


def test_inputs_that_do_not_fit_the_program(contents):
    interpreter = loaded(contents["custom"])
    (entry,) = interpreter.get_input_details()
    for shape in ((1, 9, 8, 3), (243,), (1, 2**15, 2**15, 3)):
        interpreter.resize_tensor_input(entry["index"], shape)
        with pytest.raises(RuntimeError, match="243 floats for each image"):
            interpreter.allocate_tensors()
