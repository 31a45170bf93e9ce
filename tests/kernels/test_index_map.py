"""Index maps against loops and brute force."""

import subprocess
import sys

import numpy as np
import pytest

from espace_tf.kernels import index_map
from espace_tf.kernels.index_map import Geometry, IndexMap


def random_geometry(rng: np.random.Generator) -> Geometry:
    while True:
        paddings = ["valid", "same", tuple(map(tuple, rng.integers(0, 4, (2, 2)).tolist()))]
        try:
            return Geometry(
                kernel_size=tuple(rng.integers(1, 6, 2)),
                input_size=tuple(rng.integers(1, 14, 2)),
                strides=tuple(rng.integers(1, 4, 2)),
                dilation_rate=tuple(rng.integers(1, 4, 2)),
                padding=paddings[rng.integers(3)],
            )
        except ValueError:
            continue  # the kernel did not fit


def random_positions(rng: np.random.Generator, size: int) -> np.ndarray:
    return np.sort(rng.choice(size, rng.integers(1, size + 1), replace=False)).astype(np.int32)


def padded_input(geometry: Geometry) -> np.ndarray:
    """The numbers of the input's positions, framed by -1."""
    numbers = np.arange(geometry.rows_in).reshape(geometry.input_size)
    return np.pad(numbers, geometry.pads, constant_values=-1)


@pytest.mark.parametrize("seed", range(200))
def test_conv_table_reads_what_a_loop_over_the_padded_map_reads(seed):
    rng = np.random.default_rng(seed)
    geometry = random_geometry(rng)
    numbers = padded_input(geometry)
    (kh, kw), (sh, sw), (dh, dw) = geometry.kernel_size, geometry.strides, geometry.dilation_rate
    expected = [
        numbers[y : y + (kh - 1) * dh + 1 : dh, x : x + (kw - 1) * dw + 1 : dw].ravel()
        for y in range(0, numbers.shape[0] - (kh - 1) * dh, sh)
        for x in range(0, numbers.shape[1] - (kw - 1) * dw, sw)
    ]
    table = index_map.conv_table(geometry)
    assert table.dtype == np.int32
    assert len(expected) == geometry.rows_out == np.prod(geometry.output_size), f"{seed=}"
    np.testing.assert_array_equal(table, expected, f"{seed=} {geometry}")
    positions = random_positions(rng, geometry.rows_out)
    np.testing.assert_array_equal(
        index_map.conv_table(geometry, positions), table[positions], f"{seed=} {geometry}"
    )


@pytest.mark.parametrize("seed", range(200))
def test_nearest_spread_is_the_brute_force_nearest_and_lowest(seed):
    rng = np.random.default_rng(seed)
    size = tuple(rng.integers(1, 13, 2))
    positions = random_positions(rng, size[0] * size[1])
    kept = np.stack(np.divmod(positions, size[1]), -1)
    every = np.stack(np.divmod(np.arange(size[0] * size[1]), size[1]), -1)
    distance = ((every[:, None] - kept) ** 2).sum(-1)
    spread = index_map.nearest_spread(size, positions)
    assert spread.dtype == np.int32
    np.testing.assert_array_equal(spread, distance.argmin(1), f"{seed=} {size} {positions}")


def test_nearest_spread_of_a_large_map_is_quick_and_small():
    size = (224, 224)
    positions = np.flatnonzero(np.random.default_rng(0).random(size).ravel() < 0.3)
    spread = index_map.nearest_spread(size, positions)
    np.testing.assert_array_equal(spread[positions], np.arange(len(positions)))


@pytest.mark.parametrize("seed", range(50))
def test_compose_reads_the_producers_computed_rows(seed):
    rng = np.random.default_rng(seed)
    spread = rng.integers(0, 7, 30).astype(np.int32)
    table = rng.integers(-1, 30, (12, 4)).astype(np.int32)
    few = rng.normal(size=8)
    few[-1] = 0  # what -1 reads
    whole = np.append(few[spread], 0)
    composed = index_map.compose(table, spread)
    assert composed.dtype == np.int32
    np.testing.assert_array_equal(few[composed], whole[table], f"{seed=}")


@pytest.mark.parametrize("seed", range(50))
def test_a_reindexed_table_reads_the_same_values(seed):
    rng = np.random.default_rng(seed)
    table = rng.integers(-1, 40, (6, 5)).astype(np.int32)
    rows = index_map.rows_read(table)
    assert rows.dtype == np.int32 and -1 not in rows
    assert set(rows) == set(table.ravel()) - {-1}, f"{seed=}"
    values = rng.normal(size=40)
    few = index_map.reindex(table, rows)
    assert few.dtype == np.int32
    np.testing.assert_array_equal(
        np.append(values[rows], 0)[few], np.append(values, 0)[table], f"{seed=}"
    )


def test_check_positions_sorts_and_drops_duplicates():
    checked = index_map.check_positions([5, 1, 5, 0], size=6)
    assert checked.dtype == np.int32 and checked.tolist() == [0, 1, 5]


@pytest.mark.parametrize(
    ("positions", "error", "words"),
    [
        ([], ValueError, "positions is empty"),
        ([0.5], TypeError, "positions must be integers"),
        (np.ones(4, bool), TypeError, "flatnonzero"),
        ([[0, 1]], ValueError, "positions must be flat"),
        ([0, 9], ValueError, r"positions must lie in \[0, 9\)"),
        ([-1], ValueError, r"positions must lie in \[0, 9\)"),
    ],
)
def test_check_positions_says_what_is_wrong(positions, error, words):
    with pytest.raises(error, match=words):
        index_map.check_positions(positions, 9)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(kernel_size=(3, 3), input_size=(2, 8)), "kernel_size .* does not fit"),
        (dict(kernel_size=(0, 3), input_size=(8, 8)), "kernel_size must be"),
        (dict(kernel_size=(3,), input_size=(8, 8)), "kernel_size must be"),
        (dict(kernel_size=3, input_size=(8, None)), "input_size must be"),
        (dict(kernel_size=3, input_size=(8, 8), strides=0), "strides must be"),
        (dict(kernel_size=3, input_size=8, dilation_rate=(1, 2.5)), "dilation_rate must be"),
        (dict(kernel_size=3, input_size=8, padding="full"), "padding must be"),
        (dict(kernel_size=3, input_size=8, padding=((1, -1), (0, 0))), "padding must be"),
    ],
)
def test_geometry_says_what_is_wrong(arguments, words):
    with pytest.raises(ValueError, match=words):
        Geometry(**arguments)


def test_geometry_takes_single_numbers_and_capitals():
    geometry = Geometry(kernel_size=3, input_size=(8, 6), strides=2, padding="SAME")
    assert geometry.kernel_size == (3, 3) and geometry.strides == (2, 2)
    assert geometry.padding == "same" and geometry.pads == ((0, 1), (0, 1))
    assert geometry.output_size == (4, 3) and geometry.taps == 9
    assert geometry == Geometry(kernel_size=(3, 3), input_size=(8, 6), strides=2, padding="same")


def test_conv_knows_when_it_is_dense():
    geometry = Geometry(kernel_size=3, input_size=5)
    for positions in (None, range(9)):
        full = IndexMap.conv(geometry, positions)
        assert full.geometry == geometry and full.spread is None and full.rows_out == 9
    masked = IndexMap.conv(geometry, [0, 4])
    assert masked.geometry is None and masked.rows_in == 25
    assert masked.table.shape == (2, 9) and masked.rows_out == 9
    few = IndexMap.conv(geometry, [0, 4], spread=False)
    assert few.spread is None and few.rows_out == 2


@pytest.mark.parametrize(
    ("table", "spread", "error", "words"),
    [
        ([[0, 4]], None, ValueError, r"table must hold values in \[-1, 4\). Received: 0 to 4"),
        ([[0, -2]], None, ValueError, "table must hold values"),
        ([0, 1], None, ValueError, "table must have rank 2"),
        ([[0.0]], None, TypeError, "table must be int32. Received: dtype float64"),
        ([[0], [1]], [0, 2], ValueError, r"spread must hold values in \[0, 2\)"),
        ([[0], [1]], [-1], ValueError, "spread must hold values"),
        ([[0], [1]], [[1]], ValueError, "spread must have rank 1"),
    ],
)
def test_an_index_map_is_valid_once_built(table, spread, error, words):
    def as_indices(values):
        array = np.array(values)
        return array.astype(np.int32) if array.dtype == np.int64 else array

    with pytest.raises(error, match=words):
        IndexMap(as_indices(table), None if spread is None else as_indices(spread), rows_in=4)


def test_maps_that_do_not_belong_together_are_refused():
    with pytest.raises(ValueError, match="table reads row 5 but spread has only 3 rows"):
        index_map.compose(np.array([[5]]), np.array([0, 0, 1]))
    with pytest.raises(ValueError, match="table reads 1 rows that are not in rows, first 5"):
        index_map.reindex(np.array([[5, 2]]), np.array([2]))


def test_needs_numpy_only():
    program = (
        "import runpy, sys\n"
        f"runpy.run_path({index_map.__file__!r})\n"
        "assert not {'tensorflow', 'keras', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
