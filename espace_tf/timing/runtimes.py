"""Where networks run: TensorFlow, LiteRT, or what a user gives, behind the same three methods.

A new runtime is a class here and an entry under one name in RUNTIMES, here and in `config`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from espace_tf import litert
from espace_tf.deploy import export_onnx, fused_file, tflite
from espace_tf.deploy.inference import inference_copy
from espace_tf.network import graph
from espace_tf.rewriting.fuse import fuse
from espace_tf.rewriting.strip import strip
from espace_tf.timing.layer_times import cores

Call = Callable[[], Any]


class Runtime:
    """What runs networks: plans are made for it, and speeds measured on it.

    `EspaceConfig(runtime=)` and `benchmark(runtime=)` take a name or an object with the three
    methods `prepare`, `run` and `outputs`; to derive from this class is not needed. Messages call
    it by its `name`, if it has one. Its times are not kept after the process: what it will be in
    another one is not known.

    Example:
        >>> class Compiled:
        ...     name = "TensorFlow with XLA"
        ...
        ...     def prepare(self, model, inputs, threads):
        ...         x = tf.constant(inputs[0])
        ...         call = tf.function(model, jit_compile=True, autograph=False)
        ...         return call.get_concrete_function(x), x
        ...
        ...     def run(self, prepared):
        ...         function, x = prepared
        ...         function(x)
        ...
        ...     def outputs(self, prepared):
        ...         function, x = prepared
        ...         return [function(x)]
        >>> rows = espace_tf.benchmark(model, small, runtime=Compiled(), batch_size=8)
        >>> config = espace_tf.EspaceConfig(runtime=Compiled(), batch_size=8)
        >>> small = espace_tf.compress(model, data, speedup=2, config=config)
    """

    fuses_all = False  # whether every network runs in fused graphs, not only compressed ones

    def prepare(self, model: Any, inputs: Sequence[np.ndarray], threads: int | None) -> Any:
        """A model, or a single layer of one, made ready to run on one batch.

        Args:
            model: Keras 3 or tf_keras, for inference: without batch norms that can be folded, in
                float32, its compressed layers as plain TensorFlow operations. `export_saved_model`
                and `export_tflite` write files of it; `strip(model, stock=True)` makes it of
                Keras's own layers.
            inputs: one array for each of `model.inputs`: one batch of one size.
            threads: CPU threads; None: what the runtime takes by itself.

        Returns:
            Anything that `run` and `outputs` know what to do with.

        Raises:
            ValueError: the runtime does not run such a model, or not on so many threads.
        """
        raise NotImplementedError

    def run(self, prepared: Any) -> float | None:
        """Runs it once, and returns when all is done: this is what is timed.

        Returns:
            None; or, where another machine runs it, the seconds that it took there.
        """
        raise NotImplementedError

    def outputs(self, prepared: Any) -> Sequence[Any]:
        """What it computes, one array (or what NumPy makes one of) for each of `model.outputs`."""
        raise NotImplementedError

    def form(self, model: Any) -> Any:
        """A copy of a model as it is best run here: what `prepare` gets."""
        return inference_copy(model)

    def layer(self, layer: Any, shape: tuple[int, ...], threads: int | None) -> Call:
        """A call of one new layer on a batch of noise of this shape, to be timed; in float32."""
        model, x = self._alone(layer, shape)
        return functools.partial(self.run, self.prepare(model, [x], threads))

    @staticmethod
    def _alone(layer: Any, shape: tuple[int, ...]) -> tuple[keras.Model, np.ndarray]:
        """A model of one layer, and noise for it."""
        layer.dtype_policy = "float32"
        model = keras.Sequential([keras.Input(shape[1:], dtype="float32"), layer])
        return model, np.random.default_rng(0).random(shape, np.float32)

    def step_threads(self, threads: int | None) -> int | None:
        """On how many of TensorFlow's threads its fused graphs are timed step by step.

        Args:
            threads: as in `EspaceConfig`.

        Returns:
            0: on all of them; None: this runtime has no fused graphs, or not on so many threads.
        """
        return None

    def nothing(self, threads: int | None) -> Call:
        """A call of a network that does next to nothing: what calling costs."""
        return self.layer(keras.layers.Conv2D(1, 1), (1, 1, 1, 1), threads)


class _TensorFlow(Runtime):
    """A traced function."""

    def prepare(self, model: Any, inputs: Sequence[np.ndarray], threads: int | None) -> Any:
        return self._traced(lambda *given: graph.call(model, given), inputs, threads)

    def _traced(self, call: Callable, inputs: Sequence[Any], threads: int | None) -> Any:
        set_threads(threads)
        tensors = [tf.constant(array) for array in inputs]
        return tf.function(call, autograph=False).get_concrete_function(*tensors), tensors

    def run(self, prepared: Any) -> None:
        function, tensors = prepared
        function(*tensors)
        if tf.config.list_logical_devices("GPU"):  # On a CPU the call returns when all is done.
            tf.test.experimental.sync_devices()

    def outputs(self, prepared: Any) -> Sequence[Any]:
        function, tensors = prepared
        return function(*tensors)

    def form(self, model: Any) -> Any:
        return strip(model)

    def layer(self, layer: Any, shape: tuple[int, ...], threads: int | None) -> Call:
        """In the type that the layer computes in.

        There is no model around the layer, which would take longer to build than all calls of it.
        """
        set_threads(threads)
        layer.build(shape)
        x = tf.cast(np.random.default_rng(0).random(shape), layer.compute_dtype)
        prepared = self._traced(lambda x: layer(x, training=False), [x], threads)
        return functools.partial(self.run, prepared)

    def step_threads(self, threads: int | None) -> int:
        """All, after TensorFlow was made to have so many."""
        set_threads(threads)
        return 0

    def nothing(self, threads: int | None) -> Call:
        prepared = self._traced(lambda x: [x[:1]], [np.zeros(1, np.float32)], threads)
        return functools.partial(self.run, prepared)


class _LiteRT(Runtime):
    """A file of built-in operators, in LiteRT's interpreter."""

    def prepare(self, model: Any, inputs: Sequence[np.ndarray], threads: int | None) -> Any:
        return tflite.prepare(model, tflite.convert(model), list(inputs), threads=threads)

    def run(self, prepared: Any) -> None:
        interpreter, _ = prepared
        interpreter.invoke()

    def outputs(self, prepared: Any) -> Sequence[Any]:
        interpreter, outputs = prepared
        interpreter.invoke()
        return [interpreter.get_tensor(index) for index in outputs]


class _LiteRTFused(_LiteRT):
    """A file with fused stretches, in LiteRT's interpreter with our delegate.

    The delegate's kernels are those of TensorFlow's operation, whose steps tell their times.
    """

    fuses_all = True

    def step_threads(self, threads: int | None) -> int | None:
        """The interpreter takes one thread by itself; TensorFlow may have fewer than asked for."""
        threads = 1 if threads is None else threads
        available = tf.config.threading.get_intra_op_parallelism_threads() or cores()
        return threads if threads <= available else None

    def prepare(self, model: Any, inputs: Sequence[np.ndarray], threads: int | None) -> Any:
        content = fused_file.convert(fuse(model, large=False), named=model)
        delegates = [litert.delegate(strict=True)]
        return tflite.prepare(model, content, list(inputs), threads=threads, delegates=delegates)


class _LiteRTInt8(_LiteRT):
    """The same with integer kernels, whose time does not depend on how good the ranges are."""

    def prepare(self, model: Any, inputs: Sequence[np.ndarray], threads: int | None) -> Any:
        content = tflite.convert(model, quantize="int8", examples=[list(inputs)])
        return tflite.prepare(model, content, list(inputs), threads=threads)

    def layer(self, layer: Any, shape: tuple[int, ...], threads: int | None) -> Call:
        """With integers as input and output: only a whole network turns floats into such."""
        model, x = self._alone(layer, shape)
        content = tflite.convert(model, quantize="full_int8", examples=[[x]])
        given = [np.zeros(x.shape, np.int8)]
        prepared = tflite.prepare(model, content, given, threads=threads)
        return functools.partial(self.run, prepared)


class _OnnxRuntime(Runtime):
    """An ONNX file, in ONNX Runtime on CPUs."""

    def prepare(self, model: Any, inputs: Sequence[np.ndarray], threads: int | None) -> Any:
        content = export_onnx.convert(model, [array.shape for array in inputs])
        session = export_onnx.session(content, threads)
        binding = session.io_binding()
        for given, array in zip(session.get_inputs(), inputs, strict=True):
            binding.bind_cpu_input(given.name, array)
        for name in tflite.output_names(model):
            binding.bind_output(name)
        return session, binding

    def run(self, prepared: Any) -> None:
        session, binding = prepared
        session.run_with_iobinding(binding)

    def outputs(self, prepared: Any) -> Sequence[Any]:
        self.run(prepared)
        return prepared[1].copy_outputs_to_cpu()


class _OpenVino(Runtime):
    """An ONNX file, in OpenVINO on CPUs, computing in float32 where it would choose 16 bits."""

    def prepare(self, model: Any, inputs: Sequence[np.ndarray], threads: int | None) -> Any:
        import openvino

        content = export_onnx.convert(model, [array.shape for array in inputs])
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        core = openvino.Core()
        request = core.compile_model(core.read_model(content), "CPU", settings)
        request = request.create_infer_request()
        for index, array in enumerate(inputs):
            request.set_input_tensor(index, openvino.Tensor(array))
        return request, tflite.output_names(model)

    def run(self, prepared: Any) -> None:
        request, _ = prepared
        request.start_async()
        request.wait()

    def outputs(self, prepared: Any) -> Sequence[Any]:
        self.run(prepared)
        request, names = prepared
        return [request.get_tensor(name).data for name in names]


RUNTIMES = {
    "tf": _TensorFlow(),
    "litert": _LiteRT(),
    "litert-fused": _LiteRTFused(),
    "litert-int8": _LiteRTInt8(),
    "onnxruntime": _OnnxRuntime(),
    "openvino": _OpenVino(),
}


class _Given(Runtime):
    """A runtime of the user's, who wrote three methods."""

    def __init__(self, runtime: Any):
        self.prepare, self.run, self.outputs = runtime.prepare, runtime.run, runtime.outputs


def find(runtime: Any) -> Runtime:
    """The runtime of a name, or around a user's object."""
    return RUNTIMES[runtime] if isinstance(runtime, str) else _Given(runtime)


def runner(
    model: Any, arrays: Sequence[np.ndarray], runtime: Any, threads: int | None = None
) -> tuple[Call, Callable[[], list[np.ndarray]]]:
    """A call of a model to be timed, and one that gives its outputs.

    Args:
        model: a Keras 3 or tf_keras model, run as it is.
        arrays: one batch for each input.
        runtime: as in `EspaceConfig`.
        threads: CPU threads; None: what the runtime takes by itself.

    Raises:
        ValueError: TensorFlow already runs with another number of threads.
    """
    chosen = find(runtime)
    prepared = chosen.prepare(model, arrays, threads)
    read = lambda: [np.asarray(each) for each in chosen.outputs(prepared)]  # noqa: E731
    return functools.partial(chosen.run, prepared), read


@functools.lru_cache(maxsize=8)
def nothing(runtime: Any, threads: int | None) -> Call:
    """A call of what does nothing on a runtime: what calling costs there."""
    return find(runtime).nothing(threads)


def set_threads(threads: int | None) -> None:
    """Makes TensorFlow compute with this many threads, while it still can.

    Raises:
        ValueError: TensorFlow has computed something already, with another number.
    """
    if threads in (None, tf.config.threading.get_intra_op_parallelism_threads()):
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise ValueError(
            f"threads={threads} must be set before TensorFlow computes anything: call "
            f"tf.config.threading.set_intra_op_parallelism_threads({threads}) at the start of the "
            "program, or use runtime='litert'"
        ) from error
