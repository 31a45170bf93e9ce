"""What the benchmark of the engine reads in a program, and what it says of what it measured."""

import numpy as np

from benchmarks.engine_report import report
from benchmarks.engine_steps import read_steps
from espace_tf.kernels.program import CONVOLVE, MAX, SUM, ProgramBuilder


def test_steps_are_read_with_their_operations_and_bytes():
    builder = ProgramBuilder()
    rows = builder.input(6, 3)
    table = np.array([[0, 1], [1, -1]], np.int32)
    filters, bias = builder.weight(2 * 3 * 5), builder.weight(5)
    made = builder.step(CONVOLVE, [rows], 2, 5, filter=filters, bias=bias, table=table)
    pooled = builder.step(MAX, [made], 2, 5, table=np.array([[0, 1], [1, -1]], np.int32))
    builder.output(builder.step(SUM, [made, pooled], 2, 5))
    convolved, largest, added = read_steps(builder.words())
    assert convolved.kind == "convolve"
    assert convolved.shape == (2, 2, 3, 5)
    assert convolved.operations == 2 * (2 * 2 * 3 * 5)
    assert convolved.bytes == 4 * (2 * 3 + 2 * 5)  # rows 0 and 1, each once; what it writes
    assert convolved.filter_bytes == 4 * 30
    assert (largest.kind, largest.operations) == ("max", 2 * 2 * 5)
    assert largest.bytes == 4 * (2 * 5 + 2 * 5)
    assert (added.kind, added.bytes) == ("sum", 4 * 3 * 2 * 5)


def step(kind, ms, of_roof):
    return {"step": f"{kind} 1x1", "kind": kind, "ms": ms, "gflops": 50.0, "of_roof": of_roof}


def test_report_says_which_goals_are_met():
    steps = [step("convolve", 9.0, 0.95), step("max", 1.0, 0.2)]
    # Rounds of [one thread, two threads] of [TensorFlow, dense, compressed, LiteRT]; one is odd.
    times = [[[20.0, 18.0, 8.0, 9.0], [10.0, 10.5, 4.0, 6.0]]] * 3 + [[[1.0] * 4] * 2]
    found = [
        {
            "network": "googlenet",
            "threads": [1, 2],
            "macs": {"plain": 400, "layers": 100},
            "batches": [
                {
                    "batch": 1,
                    "dense": steps,
                    "compressed": steps,
                    "peak": 100.0,
                    "copies": [40.0, 20.0],
                    "pairs": [1.0, 1.2],
                    "seconds": times,
                }
            ],
        }
    ]
    text = report(found)
    where = "- googlenet, batch 1, 2 threads"
    assert f"{where}: time of ideal: 1.60 (at most 1.6): met" in text
    assert f"{where}: over LiteRT: 1.50 (at least 1.3): met" in text
    assert f"{where}: over one thread: 2.00 (at least 1.7): met" in text
    assert f"{where}: pooling's share of time: 0.10 (at most 0.05): missed" in text
    assert f"{where}: dense fused over TensorFlow: 0.95 (at least 1): missed" in text
    assert "- googlenet, batch 1: pairs of 1/4, time of ideal, mean: 1.10" in text
    assert (
        "| googlenet dense | 1 | 10.00 | 50 | 50% | 10.0% | 10.0% | max 1x1: 10.0% at 20% |" in text
    )
