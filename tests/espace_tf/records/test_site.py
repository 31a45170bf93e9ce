"""What a Site counts, against loops over every position and tap."""

import dataclasses
import json

import numpy as np
import pytest

from espace_tf.records.site import Site

SEED = 5


def make(**fields) -> Site:
    return Site(
        **{
            "path": "a/b",
            "kind": "conv",
            "kernel_size": (3, 3),
            "in_channels": 4,
            "filters": 6,
            "padding": "same",
            "input_sizes": ((7, 9),),
            "output_sizes": ((7, 9),),
            **fields,
        }
    )


def random_site(rng: np.random.Generator) -> Site:
    groups = int(rng.choice([1, 2]))
    dilation = tuple(map(int, rng.integers(1, 3, 2)))
    strides = (1, 1) if max(dilation) > 1 else tuple(map(int, rng.integers(1, 4, 2)))
    site = make(
        kernel_size=tuple(map(int, rng.integers(1, 5, 2))),
        in_channels=2 * groups,
        filters=3 * groups,
        groups=groups,
        strides=strides,
        dilation_rate=dilation,
        padding=str(rng.choice(["same", "valid"])),
        input_sizes=((int(rng.integers(9, 14)), int(rng.integers(9, 14))),),
    )
    return make(**{**dataclasses.asdict(site), "output_sizes": (site.geometry().output_size,)})


def pair_rows(site: Site, order: str, positions) -> tuple[int, int]:
    """Rows that both halves compute, by walking over all positions and taps of the second half."""
    axis = 0 if order == "vertical" else 1
    other = 1 - axis
    geometry = site.geometry()
    needed = set()
    for position in positions:
        place = divmod(int(position), geometry.output_size[1])
        for tap in range(site.kernel_size[other]):
            read = place[other] * site.strides[other] + tap * site.dilation_rate[other]
            read -= geometry.pads[other][0]
            if 0 <= read < site.input_sizes[0][other]:
                needed.add((place[axis], read))
    return len(needed), len(positions)


@pytest.mark.parametrize("order", ["vertical", "horizontal"])
def test_macs_of_pairs_and_masks_against_loops(order):
    rng = np.random.default_rng(SEED)
    axis = 0 if order == "vertical" else 1
    for trial in range(40):
        site = random_site(rng)
        size = site.geometry().rows_out
        positions = np.sort(rng.choice(size, int(rng.integers(1, size + 1)), replace=False))
        per_row = np.prod(site.kernel_size) * site.in_channels // site.groups * site.filters
        message = f"seed {SEED}, trial {trial}, {site}"
        assert site.macs() == size * per_row, message
        assert site.macs(positions=positions) == len(positions) * per_row, message
        first_taps, second_taps = site.kernel_size[axis], site.kernel_size[1 - axis]
        # g groups, each from C/g channels to 2, and from 2 to N/g
        first_row = first_taps * (site.in_channels // site.groups) * 2 * site.groups
        second_row = second_taps * 2 * (site.filters // site.groups) * site.groups
        first, second = pair_rows(site, order, positions)
        expected = first * first_row + second * second_row
        assert site.macs(rank=2, order=order, positions=positions) == expected, message
        dense_first = site.geometry().output_size[axis] * site.input_sizes[0][1 - axis]
        expected = dense_first * first_row + size * second_row
        assert site.macs(rank=2, order=order) == expected, message


def test_calls_add_up():
    twice = make(input_sizes=((7, 9), (5, 5)), output_sizes=((7, 9), (5, 5)))
    alone = make(input_sizes=((5, 5),), output_sizes=((5, 5),))
    assert twice.macs() == make().macs() + alone.macs()
    assert twice.macs(rank=3) == make().macs(rank=3) + alone.macs(rank=3)


def test_other_kinds():
    depthwise = make(kind="depthwise", filters=8)
    assert depthwise.macs() == 63 * 9 * 8
    separable = make(kind="separable")
    assert separable.macs() == 63 * (9 * 4 + 4 * 6)
    transposed = make(kind="transpose", strides=(2, 2), output_sizes=((14, 18),))
    assert transposed.macs() == 63 * 9 * 4 * 6


def test_full_and_break_even_rank():
    site = make(kernel_size=(3, 5), in_channels=8, filters=2)
    assert site.full_rank("vertical") == min(3 * 8, 5 * 2)
    assert site.full_rank("horizontal") == min(5 * 8, 3 * 2)
    below = int(site.break_even_rank("vertical"))
    assert site.macs(rank=below) <= site.macs() < site.macs(rank=below + 1)


def test_json_round_trip():
    site = make(skip="why", input_sizes=((None, 9),))
    assert Site.from_json(json.loads(json.dumps(dataclasses.asdict(site)))) == site
    with pytest.raises(ValueError, match="colour"):
        Site.from_json({**dataclasses.asdict(site), "colour": 1})


def test_errors_in_words():
    with pytest.raises(ValueError, match="a/b depend on its input size"):
        make(input_sizes=((None, 9),)).macs()
    with pytest.raises(ValueError, match="called at two sizes"):
        make(mask_skip="called at two sizes").geometry()
    with pytest.raises(ValueError, match="order"):
        make().macs(rank=1, order="diagonal")
