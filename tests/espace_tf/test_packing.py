"""Whole models with packed regions against the same models without."""

import dataclasses
import json

import keras
import numpy as np
import pytest
import tf_keras

from espace_tf import cost, graph
from espace_tf.export import export_tflite
from espace_tf.finetuning import fine_tune
from espace_tf.packing import is_packed, pack
from espace_tf.plans import LayerPlan, Plan
from espace_tf.rewriting import apply, densify, strip
from espace_tf.schedules import PolynomialDecay

SIDE = 24
LAYERS = keras.layers


def conv(x, filters, size, name, strides=1, relu=True):
    options = {"strides": strides, "padding": "same", "use_bias": False, "name": name}
    x = LAYERS.Conv2D(filters, size, **options)(x)
    x = LAYERS.BatchNormalization(name=f"{name}_bn")(x)
    return LAYERS.ReLU(name=f"{name}_relu")(x) if relu else x


def residual(x):
    """As ResNet-20: three stages of residual blocks."""
    x = conv(x, 6, 3, "stem")
    for stage, filters in enumerate((6, 8)):
        for block in range(2):
            name, strides = f"s{stage}b{block}", 2 if stage and not block else 1
            y = conv(x, filters, 3, f"{name}_1", strides)
            y = conv(y, filters, 3, f"{name}_2", relu=False)
            if strides > 1:
                x = conv(x, filters, 1, f"{name}_short", strides, relu=False)
            x = LAYERS.ReLU(name=f"{name}_out")(LAYERS.Add(name=f"{name}_add")([y, x]))
    return LAYERS.Dense(4)(LAYERS.GlobalAveragePooling2D()(x))


def inception(x):
    x = conv(x, 6, 3, "stem")
    x = LAYERS.MaxPooling2D(3, 2, "same")(x)
    for name in "ab":
        pooled = LAYERS.AveragePooling2D(3, 1, "same")(x)
        branches = [
            conv(x, 5, 1, f"{name}1"),
            conv(conv(x, 3, 1, f"{name}3r"), 6, 3, f"{name}3"),
            conv(conv(x, 2, 1, f"{name}5r"), 4, 5, f"{name}5"),
            conv(pooled, 3, 1, f"{name}p"),
        ]
        x = LAYERS.Concatenate(name=name)(branches)
    x = LAYERS.Dropout(0.2)(LAYERS.GlobalAveragePooling2D(keepdims=True)(x))
    return LAYERS.Flatten()(LAYERS.Conv2D(4, 1, name="last")(x))


def segmentation(x):
    """Ends in maps; padding, pooling, both upsamplings, a skip connection and an attention."""
    x = skip = conv(x, 6, 3, "down1")
    x = LAYERS.MaxPooling2D(2)(x)
    x = LAYERS.ZeroPadding2D(1)(x)
    x = LAYERS.Conv2D(8, 3, activation="relu", name="down2")(x)
    gate = LAYERS.GlobalAveragePooling2D(keepdims=True)(x)
    x = LAYERS.Multiply()([x, LAYERS.Conv2D(8, 1, activation="sigmoid", name="gate")(gate)])
    x = LAYERS.UpSampling2D(2)(x)
    x = conv(LAYERS.Concatenate()([x, skip]), 6, 3, "up1")
    x = LAYERS.Conv2DTranspose(4, 3, 2, "same")(x)
    x = conv(x, 4, 3, "up2")
    return LAYERS.Conv2D(2, 1, activation="softmax", name="head")(x)


NETWORKS = {"residual": residual, "inception": inception, "segmentation": segmentation}
EVERY = pytest.mark.parametrize("name", NETWORKS)


def network(name, library=keras):
    keras.utils.set_random_seed(0)
    inputs = library.Input((SIDE, SIDE, 3))
    model = library.Model(inputs, NETWORKS[name](inputs))
    random = np.random.default_rng(0)
    for layer in model.layers:
        if "BatchNormalization" in type(layer).__name__:
            layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    return model


def images(seed=1, count=2):
    return np.random.default_rng(seed).normal(size=(count, SIDE, SIDE, 3)).astype(np.float32)


def same(ours, theirs, tolerance=1e-4, message=""):
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    scale = np.abs(theirs).max()
    np.testing.assert_allclose(ours / scale, theirs / scale, atol=tolerance, err_msg=message)


def random_plan(model, keep, seed):
    """Another mask for every convolution; half of them decomposed."""
    random, layers = np.random.default_rng(seed), {}
    for index, site in enumerate(site for site in graph.sites(model) if not site.skip):
        rows = int(np.prod(site.output_sizes[0]))
        kept = np.sort(random.choice(rows, max(1, int(keep * rows)), replace=False))
        pair = index % 2 and max(site.kernel_size) > 1
        layers[site.path] = LayerPlan(
            max(1, site.full_rank() // 2) if pair else None, positions=kept
        )
    return Plan(layers=layers, packed=True)


def packed_and_not(model, plan):
    plan = dataclasses.replace(plan, packed=True)
    return apply(model, plan), apply(model, dataclasses.replace(plan, packed=False))


def test_a_plan_remembers_and_older_files_are_not_packed(tmp_path):
    path = tmp_path / "plan.json"
    Plan(packed=True).save(path)
    assert Plan.load(path).packed
    document = json.loads(path.read_text())
    del document["packed"]
    path.write_text(json.dumps(document))
    assert not Plan.load(path).packed
    with pytest.raises(TypeError, match="packed"):
        Plan(packed="yes")


@EVERY
def test_every_position_kept_is_the_dense_network(name):
    model, x = network(name), images()
    for rank_ratio in (None, 1.0):
        plan = Plan.uniform(model, rank_ratio=rank_ratio) if rank_ratio else Plan()
        same(packed_and_not(model, plan)[0](x), model(x))


@EVERY
@pytest.mark.parametrize(
    ("mask", "keep", "rank_ratio"),
    [("grid", 0.5, None), ("rows", 0.2, 0.5), ("lattice", 0.3, None)],
)
def test_packed_equals_unpacked(name, mask, keep, rank_ratio):
    model, x = network(name), images()
    plan = Plan.uniform(model, rank_ratio=rank_ratio, keep=keep, mask=mask)
    packed, plain = packed_and_not(model, plan)
    assert is_packed(packed) and not is_packed(plain)
    same(packed(x), plain(x))
    same(strip(packed)(x), plain(x))
    assert cost.macs(packed) <= cost.macs(plain)


@EVERY
@pytest.mark.parametrize(("seed", "keep"), [(0, 0.1), (1, 0.5)])
def test_any_masks_at_all(name, keep, seed):
    model, x = network(name), images()
    packed, plain = packed_and_not(model, random_plan(model, keep, seed))
    same(packed(x), plain(x), message=f"seed {seed}")


@EVERY
def test_it_trains_saves_strips_and_exports(name, tmp_path):
    model, x = network(name), images()
    packed, _ = packed_and_not(model, Plan.uniform(model, rank_ratio=0.5, keep=0.4))
    before = [np.array(w) for w in packed.trainable_weights]
    packed.compile("adam", "mse")
    history = packed.fit(x, np.asarray(model(x)), verbose=0)
    assert np.isfinite(history.history["loss"][0])
    changed = [np.abs(a - b).max() for a, b in zip(before, packed.trainable_weights, strict=True)]
    assert min(changed) > 0
    packed.save(tmp_path / "packed.keras")
    again = keras.models.load_model(tmp_path / "packed.keras")
    np.testing.assert_array_equal(again(x), packed(x))
    same(strip(again)(x), packed(x))
    assert export_tflite(again, tmp_path / "packed.tflite").max_difference < 1e-4


def test_fine_tune_with_a_teacher():
    model, x = network("residual"), images(count=4)
    packed, _ = packed_and_not(model, Plan.uniform(model, rank_ratio=0.5, keep=0.5))
    options = {"teacher": model, "batch_size": 2, "verbose": 0, "batch_norm_batches": 2}
    history = fine_tune(packed, x, **options)
    assert np.isfinite(history.history["loss"][-1])
    with pytest.raises(ValueError, match="packed region"):
        fine_tune(packed, x, **options, features=["s0b1_out"])
    with pytest.raises(ValueError, match="packed=False"):
        fine_tune(packed, x, **options, schedule=PolynomialDecay(end_step=2))


def test_densify_takes_a_packed_network():
    model, x = network("inception"), images()
    packed, plain = packed_and_not(model, Plan.uniform(model, rank_ratio=0.5, keep=0.5))
    same(densify(model, packed)(x), densify(model, plain)(x), 1e-6)


def test_weights_names_and_the_plan_stay():
    model = network("segmentation")
    packed, plain = packed_and_not(model, Plan.uniform(model, rank_ratio=0.5, keep=0.5))
    assert packed.espace_plan.packed and list(packed.espace_plan.layers)
    ours, theirs = graph.layers(packed), graph.layers(plain)
    assert {path for path in ours if type(ours[path]).__name__ != "GatherRows"} == set(theirs)
    for path, layer in theirs.items():
        for a, b in zip(layer.get_weights(), ours[path].get_weights(), strict=True):
            np.testing.assert_array_equal(a, b)
    assert packed.output_names == plain.output_names
    assert cost.layer_costs(packed)[0].path == cost.layer_costs(plain)[0].path


@keras.saving.register_keras_serializable("test_packing")
def centred(values):
    """An activation that looks at the whole map."""
    return values - keras.ops.mean(values, (1, 2), keepdims=True)


def test_shared_nested_sequential_and_custom_parts_stay_exact():
    keras.utils.set_random_seed(0)
    shared = LAYERS.Conv2D(4, 3, padding="same", name="shared")
    twice = keras.Sequential(
        [keras.Input((SIDE, SIDE, 4)), LAYERS.Conv2D(4, 3, padding="same"), LAYERS.ReLU()],
        name="inner",
    )
    plain = keras.Sequential(
        [
            keras.Input((SIDE, SIDE, 4)),
            LAYERS.Conv2D(4, 3, padding="same"),
            LAYERS.LeakyReLU(),
            LAYERS.Conv2D(4, 1),
            LAYERS.ReLU(),
            LAYERS.DepthwiseConv2D(3),
        ],
        name="sequence",
    )
    inputs = keras.Input((SIDE, SIDE, 3))
    x = LAYERS.Conv2D(4, 3, padding="same", name="first")(inputs)
    x = shared(LAYERS.ReLU()(shared(x)))
    x = keras.ops.tanh(LAYERS.Conv2D(4, 3, padding="same", name="second")(x)) + 1.0
    x = plain(twice(twice(x)))
    x = LAYERS.Conv2D(4, 3, activation=centred)(x)
    other = LAYERS.Permute((2, 1, 3))(LAYERS.Conv2D(4, 3, name="third")(x))
    model = keras.Model(inputs, {"end": other, "first": x})
    plan = Plan.uniform(model, rank_ratio=None, keep=0.5)
    packed, unpacked = packed_and_not(model, plan)
    found, wanted, x = packed(images()), unpacked(images()), None
    for key in wanted:
        same(found[key], wanted[key], message=key)
    assert any(getattr(layer, "packing", None) for layer in packed.get_layer("sequence").layers)
    assert {type(layer).__name__ for layer in packed.get_layer("sequence").layers} >= {"GatherRows"}


def test_batch_norms_that_train_at_inference_see_the_map():
    inputs = keras.Input((SIDE, SIDE, 3))
    x = LAYERS.Conv2D(4, 3, padding="same", name="conv")(inputs)
    x = LAYERS.BatchNormalization()(x, training=True)
    model = keras.Model(inputs, LAYERS.GlobalAveragePooling2D()(LAYERS.ReLU()(x)))
    plan = Plan(layers={"conv": LayerPlan(positions=[0, 1, 100])})
    packed, plain = packed_and_not(model, plan)
    same(packed(images()), plain(images()))


def test_mixed_precision(tmp_path):
    keras.utils.set_random_seed(0)
    options = {"padding": "same", "dtype": "mixed_bfloat16"}
    inputs = keras.Input((SIDE, SIDE, 3))
    x = LAYERS.Conv2D(4, 3, **options)(inputs)
    x = LAYERS.MaxPooling2D(3, 1, **options)(x)
    x = LAYERS.Conv2D(4, 3, **options)(x)
    model = keras.Model(inputs, LAYERS.Flatten(dtype="float32")(x))
    packed, plain = packed_and_not(model, Plan.uniform(model, rank_ratio=None, keep=0.5))
    same(packed(images()), plain(images()), 2e-2)


def test_a_tf_keras_model_is_copied_as_it_is():
    layers, inputs = tf_keras.layers, tf_keras.Input((SIDE, SIDE, 3))
    x = layers.Conv2D(4, 3, padding="same", name="a")(inputs)
    model = tf_keras.Model(inputs, layers.Conv2D(4, 3, name="b")(layers.ReLU()(x)))
    plan = dataclasses.replace(Plan.uniform(model, keep=0.5), packed=True)
    small = apply(model, plan)
    assert not is_packed(small) and small.espace_plan is plan
    same(pack(small)(images()), small(images()))


@pytest.mark.slow
@pytest.mark.parametrize("application", ["ResNet50", "MobileNetV3Small", "VGG16"])
def test_applications(application):
    keras.utils.set_random_seed(0)
    options = {"weights": None, "include_top": False, "pooling": "avg"}
    model = getattr(keras.applications, application)(input_shape=(48, 48, 3), **options)
    x = np.random.default_rng(0).normal(size=(2, 48, 48, 3)).astype(np.float32)
    plan = Plan.uniform(model, rank_ratio=0.5, keep=0.4)
    packed, plain = packed_and_not(model, plan)
    assert is_packed(packed)
    same(packed(x, training=False), plain(x, training=False))
    same(strip(packed)(x, training=False), plain(x, training=False))
