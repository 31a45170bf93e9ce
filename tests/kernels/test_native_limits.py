"""The native operations at their limits: hostile programs, too little memory, too few threads."""

import os
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

from espace_tf.kernels import loader
from espace_tf.kernels.program import CONVOLVE, INPUT, MAGIC, MAX, OUTPUT, SCRATCH, ProgramBuilder

OPERATIONS = loader.operations_now()
pytestmark = pytest.mark.skipif(OPERATIONS is None, reason="no native operations")
LARGEST = 2**31 - 1


def call(words: list[int], *inputs: tf.Tensor, weights: tuple = (), outputs: int = 1) -> list:
    program = tf.make_tensor_proto(np.array(words, np.int32))

    @tf.function
    def run(*inputs):
        return OPERATIONS.espace_fused_graph(
            inputs=list(inputs), weights=list(weights), program=program, outputs=outputs
        )[0]

    return run(*inputs)


def header(outputs: int = 1, tensors: int = 2, steps: int = 0, scratch: int = 0) -> list[int]:
    return [MAGIC, 1, outputs, 0, tensors, 0, steps, scratch]


def test_an_output_past_all_counting_is_refused():
    words = header() + [INPUT, 0, 0, 1, 1, 1] + [OUTPUT, 0, 0, LARGEST, 1, LARGEST]
    with pytest.raises(tf.errors.InvalidArgumentError):
        call(words, tf.ones([4, 1]))


def test_scratch_past_all_memory_is_refused_in_words():
    step = [MAX, 0, 2, -1, -1, -1, 0, -1, 1, 0]
    tensors = [INPUT, 0, 0, 1, 1, 1, SCRATCH, 0, 0, 1, 1, 1, OUTPUT, 0, 0, 1, 1, 1]
    words = [MAGIC, 1, 1, 0, 3, 1, 1, LARGEST, *tensors, 1, 1, 0, *step]
    program = "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 33, 1 << 33))\n"
    assert "no memory" in in_a_process(
        program + f"import test_native_limits as t, tensorflow as tf\n"
        f"try: t.call({words}, tf.ones([3, 1]))\n"
        "except tf.errors.ResourceExhaustedError as error: print(error)\n"
    )


def test_a_copy_past_all_memory_is_refused_in_words():
    assert "no memory" in in_a_process(
        "import resource, test_native_limits as t, tensorflow as tf\n"
        "rows, index = tf.ones([1, 10**8, 1], tf.float16), tf.zeros([1, 1], tf.int32)\n"
        "def run(rows):\n"
        "    one = tf.ones([1, 1, 1], tf.float16)\n"
        "    return t.OPERATIONS.espace_masked_conv2d(\n"
        "        rows, one, index, index[0], one[0, 0], use_spread=False, use_bias=False)\n"
        "run(rows[:, :10])\n"
        "pages = int(open('/proc/self/statm').read().split()[0])\n"
        "most = pages * resource.getpagesize() + 3 * 10**8\n"
        "resource.setrlimit(resource.RLIMIT_AS, (most, most))\n"
        "try: run(rows)\n"
        "except tf.errors.ResourceExhaustedError as error: print(error)\n"
    )


def test_a_step_that_writes_where_it_reads_is_refused():
    tensors = [INPUT, 0, 0, 2, 2, 2, OUTPUT, 0, 0, 2, 2, 4, OUTPUT, 0, 1, 2, 2, 4]
    table = [2, 1, 0, 1]
    words = [MAGIC, 1, 1, 0, 3, 1, 2, 0, *tensors, *table]
    words += [MAX, 0, 1, -1, -1, -1, 0, -1, 1, 0, MAX, 0, 2, -1, -1, -1, 0, -1, 1, 1]
    with pytest.raises((ValueError, tf.errors.InvalidArgumentError), match="writes where it reads"):
        call(words, tf.ones([1, 2, 2]))


def test_a_program_of_more_outputs_than_its_operation_is_refused_without_a_shape_function():
    tensors = [INPUT, 0, 0, 1, 1, 1]
    words = header(outputs=3, tensors=4) + tensors
    for number in range(3):
        words += [OUTPUT, number, 0, 1, 1, 1]
    program = tf.make_tensor_proto(np.array(words, np.int32))
    good = header() + tensors + [OUTPUT, 0, 0, 1, 1, 1]

    @tf.function(input_signature=[tf.TensorSpec([1, 1])])
    def run(x):
        return OPERATIONS.espace_fused_graph(
            inputs=[x],
            weights=[],
            program=tf.make_tensor_proto(np.array(good, np.int32)),
            outputs=1,
        )[0]

    # A function that is registered as it is, as the runtime does with those of a file.
    definition = run.get_concrete_function().function_def
    changed = type(definition)()
    changed.CopyFrom(definition)
    changed.signature.name = "espace_tf_three_outputs"
    (node,) = [node for node in changed.node_def if node.op == "EspaceFusedGraph"]
    node.attr["program"].tensor.CopyFrom(program)
    context.context().add_function_def(changed)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must have 1 outputs, got 3"):
        context.context().call_function(b"espace_tf_three_outputs", [tf.ones([1, 1])], 1)


def convolutions(seed: int, steps: int = 6) -> tuple[list[int], list[np.ndarray]]:
    """Words and weights of convolutions [400, 96] -> [400, 96], each worth about 11 pieces."""
    rng = np.random.default_rng(seed)
    builder = ProgramBuilder()
    value, weights = builder.input(400, 96), []
    for _ in range(steps):
        weights.append(rng.normal(size=(3, 96, 96)).astype(np.float32) / 10)
        table = rng.integers(-1, 400, (400, 3)).astype(np.int32)
        filter = builder.weight(weights[-1].size)
        value = builder.step(CONVOLVE, [value], 400, 96, filter=filter, table=table)
    builder.output(value)
    return builder.words().tolist(), weights


def many_calls(seeds: tuple[int, ...]) -> None:
    """Every graph from two threads at once, beside matrix products on the same workers."""
    import threading

    graphs = {seed: convolutions(seed) for seed in seeds}
    x = tf.constant(np.random.default_rng(0).normal(size=(1, 400, 96)), tf.float32)
    wanted = {seed: call(words, x, weights=w)[0].numpy() for seed, (words, w) in graphs.items()}
    wrong = []

    def work(seed: int) -> None:
        words, weights = graphs[seed]
        for _ in range(20):
            found = call(words, x, weights=weights)[0].numpy()
            wrong.append(not np.array_equal(found, wanted[seed]))

    def product() -> None:
        for _ in range(60):
            tf.matmul(tf.ones([300, 300]), tf.ones([300, 300]))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in seeds * 2]
    threads.append(threading.Thread(target=product))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{sum(wrong)} of {len(wrong)} wrong")


def in_a_process(program: str) -> str:
    """What a process that imports this file prints; a process that hangs or dies is a failure."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": os.path.dirname(__file__)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("cores, workers", [(None, 1), (None, 7), (1, 2), (1, 16)])
def test_graphs_at_once_end_however_few_threads_run(cores, workers):
    pin = "import os; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])\n"
    said = in_a_process(
        (pin if cores else "")
        + "import tensorflow as tf\n"
        + f"tf.config.threading.set_intra_op_parallelism_threads({workers})\n"
        + "import test_native_limits as t\nt.many_calls((1, 2))"
    )
    assert said == "0 of 80 wrong\n"
