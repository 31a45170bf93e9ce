"""Programs: what the builder writes, run by the oracle."""

import numpy as np
import pytest
from program_oracle import run

from espace_tf.kernels.index_map import Geometry, conv_table
from espace_tf.kernels.program import (
    AVERAGE,
    BLEND,
    CONVOLVE,
    MAGIC,
    MAX,
    PRODUCT,
    SHUFFLE,
    SUM,
    ProgramBuilder,
)
from espace_tf.kernels.program_reader import Program

RNG = np.random.default_rng(0)


def tensors(words):
    start = 8 + words[3]
    return words[start : start + 6 * words[4]].reshape(-1, 6)


def test_a_convolution_a_pooling_and_a_sum():
    builder = ProgramBuilder()
    x = builder.input(6, 2)
    table = conv_table(Geometry(kernel_size=(2, 2), input_size=(2, 3), padding="same"))
    filter, bias = builder.weight(4 * 2 * 3), builder.weight(3)
    made = builder.step(CONVOLVE, [x], 6, 3, filter=filter, bias=bias, table=table)
    assert builder.activate(made, "relu")
    assert not builder.activate(made, "relu")
    assert not builder.activate(x, "relu")
    mean = builder.step(AVERAGE, [made], 1, 3, table=np.arange(6, dtype=np.int32)[None])
    builder.output(builder.step(SUM, [mean, mean], 1, 3, activation="relu6"))
    inputs, w, b = RNG.normal(size=(2, 6, 2)), RNG.normal(size=(4, 2, 3)), RNG.normal(size=3)
    padded = np.concatenate([inputs, np.zeros((2, 1, 2))], 1)
    wanted = np.maximum(np.einsum("bqtc,tcn->bqn", padded[:, table], w) + b, 0).mean(1) * 2
    (found,) = run(builder.words(), [inputs], [w, b])
    np.testing.assert_allclose(found[:, 0], np.minimum(wanted, 6), rtol=1e-12)
    assert Program.read(builder.words()).filters == (filter, -1, -1)


def scaled(builder, value, weight):
    rows, channels = builder.size(value)
    return builder.step(SUM, [value], rows, channels, filter=weight)


def test_parts_of_nested_concatenations_are_written_in_place():
    builder = ProgramBuilder()
    x, two = builder.input(5, 3), builder.weight(3)
    parts = [scaled(builder, x, two) for _ in range(3)]
    inner = builder.concatenate(parts[:2])
    outer = builder.concatenate([parts[2], inner])
    builder.output(builder.step(SUM, [outer], 5, 9))
    words = builder.words()
    assert words[6] == 4, "no copies"
    assert tensors(words)[parts + [inner, outer]][:, [2, 4, 5]].tolist() == [
        [3, 3, 9],
        [6, 3, 9],
        [0, 3, 9],
        [3, 6, 9],
        [0, 9, 9],
    ]
    values = RNG.normal(size=(2, 5, 3))
    (found,) = run(words, [values], [np.full(3, 2.0)])
    np.testing.assert_allclose(found, np.concatenate([values] * 3, -1) * 2)


def test_what_has_a_place_is_copied():
    builder = ProgramBuilder()
    x, two = builder.input(4, 2), builder.weight(2)
    y = scaled(builder, x, two)
    first = builder.concatenate([y, x, y])
    second = builder.concatenate([y, first])
    builder.output(second)
    builder.output(second)
    builder.output(y)
    builder.output(x)
    values = RNG.normal(size=(3, 4, 2))
    found = run(builder.words(), [values], [np.full(2, 2.0)])
    wanted = np.concatenate([2 * values, 2 * values, values, 2 * values], -1)
    for one, other in zip(found, (wanted, wanted, 2 * values, values), strict=True):
        np.testing.assert_allclose(one, other)


def test_scratch_of_what_is_read_no_more_is_used_again():
    builder = ProgramBuilder()
    value = builder.input(7, 3)
    weights = [builder.weight(3) for _ in range(10)]
    for weight in weights:
        value = scaled(builder, value, weight)
    builder.output(value)
    words = builder.words()
    assert words[7] == 2 * 32, "two buffers of 21 floats, each rounded up to 16"
    assert (tensors(words)[:, 2] % 16 == 0).all()
    values = RNG.normal(size=(2, 7, 3))
    (found,) = run(words, [values], [np.full(3, 2.0)] * 10)
    np.testing.assert_allclose(found, values * 2**10)


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs_never_overwrite_what_is_still_read(seed):
    rng = np.random.default_rng(seed)
    builder = ProgramBuilder()
    values = {builder.input(4, 3): RNG.normal(size=(2, 4, 3))}
    inputs, weights = [next(iter(values.values()))], []
    for _ in range(25):
        chosen = [list(values)[i] for i in rng.integers(0, len(values), 3)]
        if rng.random() < 0.4:
            value = builder.concatenate(chosen)
            values[value] = np.concatenate([values[each] for each in chosen], -1)
        elif rng.random() < 0.5:
            table = rng.integers(-1, 4, (4, 2)).astype(np.int32)
            value = builder.step(MAX, chosen[:1], 4, builder.size(chosen[0])[1], table=table)
            read = np.where(table[..., None] < 0, -np.inf, values[chosen[0]][:, table])
            values[value] = np.where((table < 0).all(1)[:, None], 0, read.max(2))
        else:
            weights.append(rng.normal(size=builder.size(chosen[0])[1]))
            value = scaled(builder, chosen[0], builder.weight(len(weights[-1])))
            values[value] = values[chosen[0]] * weights[-1]
        if builder.size(value)[1] > 60:
            break
    shown = list(values)[-4:]
    for value in shown:
        builder.output(value)
    found = run(builder.words(), inputs, weights)
    for one, value in zip(found, shown, strict=True):
        np.testing.assert_allclose(one, values[value], err_msg=f"seed {seed}")


def test_views_are_the_same_memory():
    builder = ProgramBuilder()
    x, two = builder.input(4, 6), builder.weight(6)
    y = scaled(builder, x, two)
    part = builder.columns(y, 2, 3)
    long = builder.reshape(y, 12)
    again = builder.columns(long, 5, 4)
    assert not builder.activate(y, "relu"), "others read it"
    builder.output(builder.concatenate([part, builder.columns(x, 0, 2), y]))
    for value in (long, again, y):
        builder.output(value)
    words = builder.words()
    assert tensors(words)[[y, part, long, again]][:, [2, 3, 4, 5]].tolist() == [
        [0, 4, 6, 6],
        [2, 4, 3, 6],
        [0, 2, 12, 12],
        [5, 2, 4, 12],
    ]
    values = RNG.normal(size=(2, 4, 6))
    found, wanted = run(words, [values], [np.full(6, 2.0)]), 2 * values
    flat = wanted.reshape(2, 2, 12)
    np.testing.assert_allclose(
        found[0], np.concatenate([wanted[..., 2:5], values[..., :2], wanted], -1)
    )
    for one, other in zip(found[1:], (flat, flat[..., 5:9], wanted), strict=True):
        np.testing.assert_allclose(one, other)


def test_what_has_gaps_or_leaves_is_copied_before_it_is_reshaped():
    builder = ProgramBuilder()
    x = builder.input(4, 6)
    parts = [scaled(builder, x, builder.weight(6)) for _ in range(2)]
    whole = builder.concatenate(parts)
    builder.output(parts_of := builder.reshape(parts[0], 3))
    builder.output(whole)
    builder.output(builder.reshape(whole, 4))
    assert builder.size(parts_of) == (8, 3)
    values = RNG.normal(size=(2, 4, 6))
    found = run(builder.words(), [values], [np.ones(6), np.full(6, 3.0)])
    both = np.concatenate([values, 3 * values], -1)
    wanted = (values.reshape(2, 8, 3), both, both.reshape(2, 12, 4))
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other)


def test_blends_shuffles_and_products_of_one_row():
    builder = ProgramBuilder()
    x, slopes = builder.input(3, 4), builder.weight(4)
    factors = RNG.normal(size=(2, 2)).astype("float32")
    table = np.array([[0, 2], [1, -1]], np.int32)
    y = builder.step(BLEND, [x], 2, 4, table=table, spread=factors)
    assert builder.activate(y, "leaky_relu", slopes)
    mean = builder.step(AVERAGE, [x], 1, 4, table=np.arange(3, dtype=np.int32)[None])
    y = builder.step(PRODUCT, [y, mean, y], 2, 4)
    order = np.array([[3], [0]], np.int32)
    builder.output(builder.step(SHUFFLE, [y], 2, 2, table=order))
    values, alpha = RNG.normal(size=(2, 3, 4)), RNG.normal(size=4)
    first = factors[0, 0] * values[:, 0] + factors[0, 1] * values[:, 2]
    blend = np.stack([first, factors[1, 0] * values[:, 1]], 1)
    blend = np.where(blend > 0, blend, alpha * blend)
    wanted = (blend**2 * values.mean(1, keepdims=True))[..., [3, 0]]
    np.testing.assert_allclose(run(builder.words(), [values], [alpha])[0], wanted, rtol=1e-6)


def test_equal_tables_are_stored_once():
    builder = ProgramBuilder()
    value, table = builder.input(4, 2), np.arange(4, dtype=np.int32)[:, None]
    for _ in range(3):
        value = builder.step(MAX, [value], 4, 2, table=table.copy(), spread=table[:, 0].copy())
    builder.output(value)
    assert builder.words()[5] == 1


def test_bad_programs_are_refused_in_words():
    builder = ProgramBuilder()
    x, y = builder.input(4, 2), builder.input(3, 2)
    with pytest.raises(ValueError, match="same number of rows"):
        builder.concatenate([x, y])
    with pytest.raises(ValueError, match="ins must be of size"):
        builder.step(SUM, [x, y], 4, 2)
    with pytest.raises(ValueError, match="table must hold values"):
        builder.step(MAX, [y], 1, 2, table=np.array([[3]], np.int32))
    with pytest.raises(ValueError, match="must give 2 rows"):
        builder.step(MAX, [y], 2, 2, table=np.array([[1]], np.int32))
    with pytest.raises(ValueError, match="slopes go with"):
        builder.step(SUM, [x], 4, 2, activation="elu")
    with pytest.raises(ValueError, match="channels must divide"):
        builder.reshape(x, 3)
    with pytest.raises(ValueError, match="factors of the table's shape"):
        builder.step(BLEND, [x], 1, 2, table=np.zeros((1, 1), np.int32), spread=np.zeros((1, 2)))
    with pytest.raises(ValueError, match="table must give 2 channels"):
        builder.step(SHUFFLE, [x], 4, 2, table=np.zeros((3, 1), np.int32))
    builder.output(x)
    words = builder.words()
    assert Program.read(words).outputs == ((4, 2),)
    assert Program.read(words).inputs == (8, 6)
    for bad in (words[:5], words[:12], np.append(0, words[1:]).astype(np.int32)):
        with pytest.raises(ValueError, match="program"):
            Program.read(bad)
    with pytest.raises(TypeError, match="int32"):
        Program.read(words.astype(float))
    assert words[0] == MAGIC


@pytest.mark.parametrize("number", [5, 6])
@pytest.mark.parametrize("count", [0, 2, 2**31 - 1])
def test_counts_that_are_not_those_of_the_words_are_refused_at_once(number, count):
    builder = ProgramBuilder()
    table = np.zeros((1, 1), np.int32)
    builder.output(builder.step(MAX, [builder.input(2, 2)], 1, 2, table=table))
    words = builder.words()
    words[number] = count
    with pytest.raises(ValueError, match="program must end with its last step"):
        Program.read(words)


@pytest.mark.parametrize("where, value", [(-13, 0), (-13, -2), (-2, -8), (-2, 0), (-2, 9)])
def test_sizes_that_lead_nowhere_are_refused_at_once(where, value):
    builder = ProgramBuilder()
    table = np.zeros((1, 1), np.int32)
    builder.output(builder.step(MAX, [builder.input(2, 2)], 1, 2, table=table))
    words = builder.words()
    assert words[[-13, -12, -2]].tolist() == [1, 1, 1], "rows and taps of the table, ins"
    words[where], words[5] = value, 2**31 - 1
    with pytest.raises(ValueError, match="program must end with its last step"):
        Program.read(words)
