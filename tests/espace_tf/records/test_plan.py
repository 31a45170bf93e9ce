"""Plans: valid once built, whole on disk or refused in words, uniform ones for any model."""

import json
import os
import shutil

import keras
import numpy as np
import pytest

from espace_tf.numerics.factors import plain_factors
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.plan import Plan

SEED = 11


def example() -> Plan:
    rng = np.random.default_rng(SEED)
    factors = plain_factors(rng.normal(size=(3, 3, 4, 8)), 3, "horizontal", groups=2)
    return Plan(
        layers={
            "block/conv": LayerPlan(
                rank=3,
                order="horizontal",
                positions=[5, 0, 3],
                factors=factors,
                family="impact",
                output_size=(2, 3),
                damage=0.25,
            ),
            "conv": LayerPlan(rank=2, note="no mask: small map"),
        },
        skipped={"stem": "would get slower"},
        fingerprint="abc",
        profile="faithful",
        speedup=2.0,
        dense_ms=3.0,
        predicted_ms=1.5,
        times={"stem": (1.0, 1.0), "block/conv": (1.0, 0.2), "conv": (1.0, 0.3)},
    )


def assert_equal(one: Plan, other: Plan):
    names = ("skipped", "fingerprint", "profile", "speedup", "dense_ms", "predicted_ms", "times")
    for name in names:
        assert getattr(one, name) == getattr(other, name), name
    assert list(one.layers) == list(other.layers)
    for path, layer in one.layers.items():
        twin = other.layers[path]
        for name in ("rank", "order", "family", "output_size", "damage", "note"):
            assert getattr(layer, name) == getattr(twin, name), (path, name)
        np.testing.assert_array_equal(layer.positions, twin.positions)
        assert (layer.factors is None) == (twin.factors is None)
        for part in ("first", "second", "bias") if layer.factors is not None else ():
            np.testing.assert_array_equal(getattr(layer.factors, part), getattr(twin.factors, part))


def test_what_a_measurement_may_differ_by_is_kept_and_shown(tmp_path):
    made = Plan(speedup=2.0, measured_speedup=1.9, measured_error=0.031)
    assert "measured 1.9 ± 3%" in made.headline()
    made.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json").measured_error == 0.031
    earlier = json.loads((tmp_path / "plan.json").read_text())
    del earlier["measured_error"]
    (tmp_path / "plan.json").write_text(json.dumps(earlier))
    assert "measured 1.9," in Plan.load(tmp_path / "plan.json").headline()


def test_save_and_load(tmp_path):
    example().save(tmp_path / "plan.json")
    loaded = Plan.load(str(tmp_path / "plan.json"))
    assert_equal(example(), loaded)
    assert loaded.layers["block/conv"].positions.dtype == np.int32
    Plan().save(tmp_path / "plan.json")
    assert_equal(Plan.load(tmp_path / "plan.json"), Plan())


def test_a_pair_can_be_moved_together(tmp_path):
    example().save(tmp_path / "plan.json")
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in os.listdir(tmp_path):
        if name != "elsewhere":
            shutil.move(tmp_path / name, moved / name)
    assert_equal(Plan.load(moved / "plan.json"), example())


def test_the_json_can_be_edited(tmp_path):
    path = tmp_path / "plan.json"
    example().save(path)
    document = json.loads(path.read_text())
    del document["layers"]["conv"]
    document["layers"]["block/conv"] |= {"rank": 2, "factors": []}
    path.write_text(json.dumps(document))
    loaded = Plan.load(path)
    assert list(loaded.layers) == ["block/conv"]
    assert loaded.layers["block/conv"].rank == 2
    assert loaded.layers["block/conv"].factors is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": None}, r"layers must be a JSON object \{...\}. Received: None"),
        ({"layers": {"conv": {"rank": 2}}}, "layer 'conv': the field 'order' is missing"),
        ({"layers": {"conv": 3}}, "layer 'conv': .* must be a JSON object"),
        ({"times": {"conv": 3}}, r"times\['conv'\] must be \(before, after\). Received: 3"),
        ({"times": {"conv": [1, "2"]}}, r"times\['conv'\] must be a finite number"),
        ({"times": [1, 2]}, "times must be a dictionary by layer path"),
        ({"speedup": "2.0"}, "speedup must be a finite number. Received: '2.0'"),
        ({"speedup": float("nan")}, "speedup must be a finite number. Received: nan"),
        ({"speedup": True}, "speedup must be a finite number. Received: True"),
        ({"dense_ms": [3.0]}, r"dense_ms must be a finite number. Received: \[3.0\]"),
        ({"dense_ms": -1}, "dense_ms must be at least 0"),
        ({"dense_ms": 10**400}, "dense_ms must be a finite number"),
        ({"predicted_ms": float("inf")}, "predicted_ms must be a finite number"),
        ({"measured_speedup": {}}, "measured_speedup must be a finite number"),
        ({"profile": 3}, "profile must be a text. Received: 3"),
        ({"fingerprint": 12}, "fingerprint must be a text. Received: 12"),
        ({"skipped": ["stem"]}, "skipped must be a dictionary"),
        ({"skipped": {"stem": None}}, r"skipped\['stem'\] must be a text. Received: None"),
    ],
)
def test_other_documents_are_refused(tmp_path, change, message):
    path = tmp_path / "plan.json"
    example().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message) as error:
        Plan.load(path)
    assert str(path) in str(error.value)
    assert "Error(" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 2}, "rank 2 and .* do not go with the factors"),
        ({"order": "diagonal"}, "order must be one of"),
        ({"rank": -1}, "rank must be at least 1"),
        ({"output_size": [1, 1]}, "positions must lie in"),
        ({"output_size": 6}, "output_size must be two integers"),
        ({"index": 7}, "index 7 has no first in the plan's array file"),
        ({"index": "0"}, "index must be an integer"),
        ({"factors": ["second"]}, "factors must be .* Received: .'second'."),
        ({"factors": "first"}, "factors must be"),
        ({"factors": None}, "factors must be"),
        ({"positions": [1, 2]}, "positions must be one of True, False"),
        ({"damage": "0.5"}, "damage must be a finite number"),
        ({"note": 5}, "note must be a text"),
    ],
)
def test_an_edit_that_makes_no_sense_is_refused(tmp_path, change, message):
    path = tmp_path / "plan.json"
    example().save(path)
    document = json.loads(path.read_text())
    document["layers"]["block/conv"] |= change
    (tmp_path / "edited.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match=f"edited.json .*layer 'block/conv': {message}"):
        Plan.load(tmp_path / "edited.json")


def test_a_plan_is_consistent():
    with pytest.raises(ValueError, match="both"):
        Plan(layers={"a": LayerPlan(rank=1)}, skipped={"a": "why"})
    with pytest.raises(TypeError, match="LayerPlan"):
        Plan(layers={"a": {"rank": 1}})
    with pytest.raises(TypeError, match="layers must be a dictionary"):
        Plan(layers=[LayerPlan(rank=1)])
    assert type(Plan(speedup=np.float32(2.5)).speedup) is float


def test_summary_has_a_row_for_every_convolution():
    rows = {row.path: row for row in example().summary()}
    assert list(rows) == ["stem", "block/conv", "conv"]
    assert rows["stem"].reason == "would get slower"
    assert rows["stem"].rank is None and rows["stem"].keep == 1.0
    assert (rows["block/conv"].rank, rows["block/conv"].keep) == (3, 0.5)
    assert rows["conv"].reason == "no mask: small map"
    assert example().predicted_speedup == 2.0


def test_repr_is_one_short_line():
    assert repr(example()) == (
        "Plan(speedup asked 2, 1.5 ms predicted instead of 3, 2 decomposed, 1 masked, 1 left)"
    )
    assert repr(Plan()) == "Plan(0 decomposed, 0 masked, 0 left)"
    assert "array" not in repr({"plans": [example()], **example().layers})


def network() -> keras.Model:
    inputs = keras.Input((16, 16, 3))
    x = keras.layers.Conv2D(8, 3, padding="same", name="wide")(inputs)
    x = keras.layers.Conv2D(8, 1, name="point")(x)
    x = keras.layers.DepthwiseConv2D(3, padding="same", name="deep")(x)
    x = keras.layers.Conv2D(6, (3, 5), strides=3, name="small")(x)
    return keras.Model(inputs, keras.layers.Flatten()(x))


def test_uniform_decomposes_and_masks_what_can_be():
    model = network()
    plan = Plan.uniform(model, rank_ratio=0.5, keep=0.5)
    assert plan.profile == "uniform"
    wide = plan.layers["wide"]
    assert (wide.rank, wide.family) == (5, "grid")  # half of min(3 * 3, 3 * 8), rounded up
    assert 0 < wide.keep <= 0.5
    assert plan.layers["point"].rank is None and plan.layers["point"].positions is not None
    assert plan.layers["small"].positions is None and "map" in plan.layers["small"].note
    assert set(plan.skipped) == {"deep"}


def test_uniform_without_masks_skips_what_has_no_rank():
    plan = Plan.uniform(network(), rank_ratio=0.3)
    assert set(plan.layers) == {"wide", "small"}
    assert set(plan.skipped) == {"point", "deep"}
    assert plan.layers["small"].rank == 8  # 0.3 * min(3 * 8, 5 * 6) = 7.2
    assert Plan.uniform(network(), rank_ratio=None).layers == {}


def test_uniform_refuses_nonsense():
    model = network()
    for wrong in ({"rank_ratio": 0}, {"rank_ratio": 1.5}, {"keep": 0}, {"keep": float("nan")}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Plan.uniform(model, **wrong)
    with pytest.raises(ValueError, match="mask"):
        Plan.uniform(model, mask="impact")
    with pytest.raises(TypeError):
        Plan.uniform("model.keras")
    dense = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="no convolution"):
        Plan.uniform(dense)
