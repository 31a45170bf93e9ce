"""EspaceConfig is valid once built."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from espace_tf.checks import check_speedup
from espace_tf.config import EspaceConfig

WRONG = {
    "profile": ["fast", None, 1],
    "runtime": ["cuda", "", np.array(["tf", "litert"]), np.array(["tf"])],
    "batch_size": [0, -1, 1.5, "1", True, None],
    "threads": [0, 2.0, "all", 10**6],
    "input_size": [0, 5, (5,), (5, 0), (5, 6, 7), "56"],
    "include": [3, ["a", 4], "("],
    "exclude": ["[", {"a": 1}],
    "seed": [-1, 0.5, 2**32],
    "calibration_images": [0, 1e3],
    "damage_images": [0],
    "energy": [0, 1.1, float("nan"), "0.9"],
    "keeps": [0.5, "0.5", [0.0], [1.0], [float("nan")]],
    "mask_families": ["impact", ["circles"], ["pooling"], [np.array(["rows", "grid"])]],
    "shrinkage": [-1e-3, float("inf")],
    "max_gap": [0],
    "min_map": [1, 8.0],
    "rounds": [0],
    "reconstruct": [-1, float("inf"), "60"],
    "tolerance": [0.0, 2.0],
    "cache_dir": [3],
}


def test_every_field_is_tried():
    assert set(WRONG) == {field.name for field in dataclasses.fields(EspaceConfig)}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in WRONG.items() for value in values]
)
def test_a_wrong_value_is_refused_by_name(name, value):
    with pytest.raises((TypeError, ValueError), match=name):
        EspaceConfig(**{name: value})


def test_the_largest_seed_is_what_numpy_and_keras_take():
    assert EspaceConfig(seed=2**32 - 1).seed == 2**32 - 1


def test_numbers_of_numpy_become_pythons():
    default = EspaceConfig()
    for field in dataclasses.fields(default):
        value = getattr(default, field.name)
        for each in value if isinstance(value, tuple) else (value,):
            given = {int: np.int64, float: np.float64, str: np.str_}.get(type(each), type)
            if isinstance(each, bool) or given is type:
                continue
            made = EspaceConfig(
                **{field.name: [given(each)] if isinstance(value, tuple) else given(each)}
            )
            found = getattr(made, field.name)
            found = found[0] if isinstance(value, tuple) else found
            assert type(found) is type(each) and found == each, field.name
    assert type(EspaceConfig(threads=np.int32(2)).threads) is int
    assert repr(EspaceConfig(batch_size=np.int64(4))) == repr(EspaceConfig(batch_size=4))


def test_keyword_only_frozen_and_hashable():
    with pytest.raises(TypeError):
        EspaceConfig("default")
    config = EspaceConfig(keeps=[0.5], include=["a", "b"], cache_dir=Path("x"))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    assert hash(config) == hash(EspaceConfig(keeps=(0.5,), include=("a", "b"), cache_dir=Path("x")))


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, None, ["stem", "block1/conv", "block2/conv"]),
        ("block", None, ["block1/conv", "block2/conv"]),
        (["^stem$", "block2"], None, ["stem", "block2/conv"]),
        (None, "conv$", ["stem"]),
        ("block", "1", ["block2/conv"]),
        (lambda path: "/" not in path, None, ["stem"]),
        (None, [lambda path: path == "stem", "block1"], ["block2/conv"]),
        ([], None, []),
    ],
)
def test_selects(include, exclude, expected):
    config = EspaceConfig(include=include, exclude=exclude)
    assert [p for p in ("stem", "block1/conv", "block2/conv") if config.selects(p)] == expected


@pytest.mark.parametrize("value", [1, 1.0, 0.5, -2, float("nan"), float("inf"), "2", None, True])
def test_a_speedup_is_a_finite_number_above_one(value):
    with pytest.raises(ValueError, match="speedup"):
        check_speedup(value)
    check_speedup(1.0001)
