"""Masks against brute force: counts, nesting, holes, and the damage of the nearest position."""

import doctest

import numpy as np
import pytest

from espace_tf.kernels.index_map import Geometry
from espace_tf.numerics import mask_ranking, masks

SIZES = ((1, 1), (1, 9), (7, 1), (5, 8), (8, 8), (13, 17))
KEEPS = (0.04, 0.12, 0.25, 0.35, 0.5, 0.75, 0.97, 1.0)


def smooth(rng, *shape):
    """Noise averaged over 4 x 4 positions of the last two axes."""
    noise = rng.normal(size=(*shape[:-2], shape[-2] + 3, shape[-1] + 3))
    return sum(noise[..., i : i + shape[-2], j : j + shape[-1]] for i in range(4) for j in range(4))


def random_table(rng, size):
    """Damages of a smooth random map, by loops over offsets; outside the map 0."""
    values, gradient = smooth(rng, 3, *size), np.abs(smooth(rng, 3, *size))
    table = np.zeros((len(masks.OFFSETS), *size))
    for number, (dy, dx) in enumerate(masks.OFFSETS):
        for y in range(size[0]):
            for x in range(size[1]):
                if 0 <= y + dy < size[0] and 0 <= x + dx < size[1]:
                    change = values[:, y, x] - values[:, y + dy, x + dx]
                    table[number, y, x] = np.abs(gradient[:, y, x] * change).sum()
    return table


def pooling_of(size):
    pool = (min(3, size[0]), min(3, size[1]))
    return Geometry(kernel_size=pool, input_size=size, strides=(2, 2), padding="same")


def variants(rng, size):
    """Every family with every kind of data it takes: (name, arguments)."""
    impact, table = np.abs(smooth(rng, *size)), random_table(rng, size)
    for family in masks.FAMILIES:
        more = {"pooling": pooling_of(size)} if family == "pooling" else {}
        for gap in (None, 1, 2):
            if family != "impact":
                yield family, {"max_gap": gap, **more}
            yield family, {"max_gap": gap, "impact": impact, **more}
            yield family, {"max_gap": gap, "table": table, "impact": impact, **more}


def kept_map(positions, size):
    kept = np.zeros(size, bool)
    kept.flat[positions] = True
    return kept


def holds_everywhere(kept, height, width):
    """Every window of this size (cut to the map) holds a kept position, by loops."""
    height, width = min(height, kept.shape[0]), min(width, kept.shape[1])
    return all(
        kept[y : y + height, x : x + width].any()
        for y in range(kept.shape[0] - height + 1)
        for x in range(kept.shape[1] - width + 1)
    )


@pytest.mark.parametrize("module", [masks, mask_ranking])
def test_examples_run(module):
    assert not doctest.testmod(module).failed


@pytest.mark.parametrize("size", SIZES)
def test_counts_are_exact_and_smaller_keeps_are_subsets(size):
    seed = 20
    for family, arguments in variants(np.random.default_rng(seed), size):
        larger = set(range(size[0] * size[1]))
        for keep in KEEPS[::-1]:
            positions = masks.kept(family, size, keep, **arguments)
            message = f"seed {seed}, {family}, {keep}, {list(arguments)}"
            assert positions.dtype == np.int32, message
            assert (np.diff(positions) > 0).all(), message
            assert set(positions.tolist()) <= larger, message
            larger = set(positions.tolist())
            free = max(int(keep * size[0] * size[1] + 1e-9), 1)
            if family == "rows":
                free = max(int(keep * size[0] + 1e-9), 1) * size[1]
            elif family == "columns":
                free = max(int(keep * size[1] + 1e-9), 1) * size[0]
            if family == "grid":
                assert 0 < len(positions) <= free, message
            else:
                assert len(positions) == free, message


@pytest.mark.parametrize("size", SIZES)
def test_structures(size):
    seed = 21
    for family, arguments in variants(np.random.default_rng(seed), size):
        for keep in (0.3, 0.6):
            kept = kept_map(masks.kept(family, size, keep, **arguments), size)
            message = f"seed {seed}, {family}, {keep}, {list(arguments)}"
            rows, columns = kept.any(axis=1), kept.any(axis=0)
            if family in ("rows", "columns", "grid"):
                np.testing.assert_array_equal(kept, np.outer(rows, columns), err_msg=message)
            if family == "rows":
                assert columns.all(), message
            if family == "columns":
                assert rows.all(), message
            if family == "runs":
                partial = sum(
                    run.any() and not run.all()
                    for row in kept
                    for run in np.split(row, range(masks.RUN, len(row), masks.RUN))
                )
                assert partial <= 1, message


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("gap", [1, 2, 3])
def test_no_hole_is_wider_than_the_gap(size, gap):
    """For keeps that suffice: a greedy order may need more than the 1 / (gap + 1)^2 of a grid."""
    seed = 22
    rng = np.random.default_rng(seed)
    impact, table = np.abs(smooth(rng, *size)), random_table(rng, size)
    side = gap + 1
    windows = {"rows": (side, 1), "columns": (1, side)}
    lines = {"rows", "columns", "runs"}
    for family in ("impact", "rows", "columns", "grid", "runs", "pooling"):
        for data in ({"impact": impact}, {"table": table, "impact": impact}):
            enough = 2 / side if family in lines else (2 / side) ** 2
            keep = min(1.0, enough + 0.1)
            more = {"pooling": pooling_of(size)} if family == "pooling" else {}
            kept = kept_map(masks.kept(family, size, keep, max_gap=gap, **data, **more), size)
            message = f"seed {seed}, {family}, {list(data)}, keep {keep}"
            if family == "grid" and keep < 1 and min(size) < 3 * side:
                continue  # the shares of rows and columns are too coarse there
            if family == "runs" and size[0] < side:
                continue  # a single run is wider than the gap
            assert holds_everywhere(kept, *windows.get(family, (side, side))), message


def test_even_masks_reach_the_smallest_possible_number_for_a_gap():
    for size in SIZES:
        for gap in (1, 2, 3):
            side = gap + 1
            least = [-(-(length - min(side, length) + 1) // side) for length in size]
            for family, keep, window in (
                ("rows", least[0] / size[0], (side, 1)),
                ("columns", least[1] / size[1], (1, side)),
            ):
                kept = kept_map(masks.kept(family, size, keep, max_gap=gap), size)
                assert holds_everywhere(kept, *window), (size, gap, family)


def test_faithful_impact_is_the_plain_top():
    for seed in range(10):
        rng = np.random.default_rng(seed)
        size = tuple(rng.integers(1, 20, 2).tolist())
        impact = rng.integers(0, 5, size).astype(float)  # many ties
        keep = rng.uniform(0.01, 1)
        count = max(int(keep * impact.size), 1)
        ranked = sorted(range(impact.size), key=lambda p: (-impact.flat[p], p))
        got = masks.kept("impact", size, keep, impact=impact)
        assert got.tolist() == sorted(ranked[:count]), f"seed {seed}"


def test_lattice_levels():
    y, x = np.indices((13, 18))
    half = kept_map(masks.kept("lattice", (13, 18), 0.5), (13, 18))
    np.testing.assert_array_equal(half, (y + x) % 2 == 0)
    even = (y % 2 == 0) & (x % 2 == 0)
    quarter = kept_map(masks.kept("lattice", (13, 18), even.mean()), (13, 18))
    np.testing.assert_array_equal(quarter, even)


def test_even_rows_and_grids():
    assert masks.kept("rows", (8, 1), 0.5).tolist() == [0, 2, 4, 6]
    assert masks.kept("rows", (8, 1), 0.25).tolist() == [0, 4]
    assert masks.kept("rows", (9, 1), 1 / 3, max_gap=2).tolist() == [1, 4, 7]
    grid = kept_map(masks.kept("grid", (8, 8), 0.25), (8, 8))
    np.testing.assert_array_equal(grid, np.outer(np.arange(8) % 2 == 0, np.arange(8) % 2 == 0))


def test_rows_and_runs_follow_the_impact():
    impact = np.ones((6, 12))
    impact[[1, 4]] = 5
    impact[3, 4:8] = 9
    rows = kept_map(masks.kept("rows", (6, 12), 0.34, impact=impact), (6, 12))
    assert np.flatnonzero(rows.all(axis=1)).tolist() == [1, 4]
    runs = kept_map(masks.kept("runs", (6, 12), 1 / 18, impact=impact), (6, 12))
    assert np.flatnonzero(runs).tolist() == [3 * 12 + x for x in range(4, 8)]


def test_runs_and_pooling_read_the_nearest_neighbours_of_a_table():
    seed = 25
    size = (8, 10)
    table = random_table(np.random.default_rng(seed), size)
    near = np.mean(
        [table[o] for o, offset in enumerate(masks.OFFSETS) if max(map(abs, offset)) == 1], axis=0
    )
    for family, more in (("runs", {}), ("pooling", {"pooling": pooling_of(size)})):
        want = masks.kept(family, size, 0.5, impact=near, **more)
        got = masks.kept(family, size, 0.5, table=table, **more)
        np.testing.assert_array_equal(got, want, err_msg=f"seed {seed}, {family}")


def test_pooling_counts_the_windows():
    pooling = Geometry(kernel_size=(3, 3), input_size=(7, 7), strides=(2, 2))
    counts = np.zeros((7, 7), int)
    for y in range(3):
        for x in range(3):
            counts[2 * y : 2 * y + 3, 2 * x : 2 * x + 3] += 1
    for keep in (0.08, 0.4, 0.75):
        kept = kept_map(masks.kept("pooling", (7, 7), keep, pooling=pooling), (7, 7))
        assert counts[kept].min() >= counts[~kept].max(), keep
    impact = np.random.default_rng(23).uniform(size=(7, 7))
    kept = kept_map(masks.kept("pooling", (7, 7), 0.5, pooling=pooling, impact=impact), (7, 7))
    assert (counts * impact)[kept].min() >= (counts * impact)[~kept].max()


def brute_force_damage(positions, size, table):
    total = 0.0
    for here in range(size[0] * size[1]):
        y, x = divmod(here, size[1])
        shown = min(positions, key=lambda p: ((p // size[1] - y) ** 2 + (p % size[1] - x) ** 2, p))
        offset = tuple(int(np.clip(v, -2, 2)) for v in (shown // size[1] - y, shown % size[1] - x))
        if offset != (0, 0):
            total += table[masks.OFFSETS.index(offset), y, x]
    return total


def test_damage_is_that_of_the_nearest_kept_position():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        size = tuple(rng.integers(1, 12, 2).tolist())
        table = rng.uniform(size=(len(masks.OFFSETS), *size))
        count = int(rng.integers(1, size[0] * size[1] + 1))
        positions = np.sort(rng.choice(size[0] * size[1], count, replace=False))
        want = brute_force_damage(positions.tolist(), size, table)
        got = masks.damage(positions, size, table)
        np.testing.assert_allclose(got, want, rtol=1e-9, err_msg=f"seed {seed}")
    assert masks.damage(np.arange(size[0] * size[1]), size, table) == 0


def test_the_greedy_order_starts_with_the_cheapest_position():
    seed = 24
    rng = np.random.default_rng(seed)
    for size in ((4, 5), (7, 7)):
        table = random_table(rng, size)
        everything = np.arange(size[0] * size[1])
        prices = [masks.damage(np.delete(everything, p), size, table) for p in everything]
        first = masks.kept("impact", size, 1 - 1 / everything.size, table=table, max_gap=2)
        skipped = np.setdiff1d(everything, first)
        assert skipped.tolist() == [int(np.argmin(prices))], f"seed {seed}, {size}"
        # The second one too: prices count what already shows a position.
        left = np.setdiff1d(everything, skipped)
        prices = [masks.damage(left[left != p], size, table) for p in left]
        second = masks.kept("impact", size, 1 - 2 / everything.size, table=table, max_gap=2)
        assert np.setdiff1d(left, second).tolist() == [left[np.argmin(prices)]], f"seed {seed}"


def test_the_table_lowers_the_predicted_damage():
    """Against the static score under the same gap, and against data-free masks."""
    ratios = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        size = (20, 24)
        table = random_table(rng, size)
        near = [max(map(abs, offset)) == 1 for offset in masks.OFFSETS]
        score = table[near].mean(axis=0)
        for keep in (0.75, 0.5, 0.35):
            by_table, by_score, even = (
                masks.damage(masks.kept(family, size, keep, **data), size, table)
                for family, data in (
                    ("impact", {"table": table, "max_gap": 2}),
                    ("impact", {"impact": score, "max_gap": 2}),
                    ("lattice", {}),
                )
            )
            assert by_table < even, f"seed {seed}, keep {keep}"
            ratios.append(by_table / by_score)
        rows = [
            masks.damage(masks.kept("rows", size, 0.5, max_gap=2, **data), size, table)
            for data in ({"table": table}, {})
        ]
        assert rows[0] < rows[1], f"seed {seed}"
    assert np.mean(ratios) < 1, ratios


@pytest.mark.parametrize(
    "change, message",
    [
        ({"family": "stripes"}, "family must be one of .* Received: 'stripes'"),
        ({"keep": 0}, r"keep must lie in \(0, 1\]. Received: 0"),
        ({"keep": 1.5}, "Received: 1.5"),
        ({"output_size": (0, 4)}, r"output_size must be .* Received: \(0, 4\)"),
        ({"impact": np.ones((3, 3))}, r"impact must have shape \(4, 4\). Received: \(3, 3\)"),
        ({"impact": np.full((4, 4), np.nan)}, "impact must be finite"),
        ({"table": np.ones((4, 4))}, r"table must have shape \(24, 4, 4\)"),
        ({"max_gap": 0}, "max_gap must be None or at least 1. Received: 0"),
        ({}, "family 'impact' needs impact or table"),
        ({"family": "pooling"}, "family 'pooling' needs pooling=Geometry"),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {"family": "impact", "output_size": (4, 4), "keep": 0.5, **change}
    with pytest.raises(ValueError, match=message):
        masks.kept(**arguments)


def test_offsets_are_in_the_order_in_which_they_are_shown():
    ranked = [(dy**2 + dx**2, dy, dx) for dy, dx in masks.OFFSETS]
    assert ranked == sorted(ranked) and len(set(ranked)) == 24


@pytest.mark.parametrize("family", masks.FAMILIES)
@pytest.mark.parametrize("gap", [None, 2])
def test_several_keeps_are_the_masks_of_each(family, gap):
    rng, size = np.random.default_rng(5), (13, 11)
    options = {"max_gap": gap}
    if family == "pooling":
        options["pooling"] = Geometry(kernel_size=(3, 3), input_size=size, strides=(2, 2))
    keeps = (0.75, 0.13, 0.5, 0.35)
    for data in ({"table": rng.random((24, *size))}, {"impact": rng.random(size)}):
        found = masks.nested(family, size, keeps, **data, **options)
        for keep, positions in zip(keeps, found, strict=True):
            np.testing.assert_array_equal(
                positions, masks.kept(family, size, keep, **data, **options)
            )
