"""The zoo's networks against the papers: parameters, multiply-accumulates, shapes."""

import keras
import numpy as np
import pytest

from espace_tf.network import costs
from espace_tf.network.sites import read_sites
from espace_tf.zoo import alexnet, googlenet, resnet, squeezenet

BUILDERS = pytest.mark.parametrize("build", [alexnet, googlenet, squeezenet])


def conv_macs(model):
    found = {site.path for site in read_sites(model)}
    return sum(macs for path, macs in costs.layer_macs(model).items() if path in found)


def test_two_towers_of_alexnet_take_666_million_macs():
    model = alexnet((227, 227, 3), groups=2, padding="valid")
    assert round(conv_macs(model) / 1e6) == 666
    # Of the reference network in the Caffe model zoo.
    assert model.count_params() == 60_965_224
    assert model.get_layer("conv1").output.shape == (None, 55, 55, 96)
    assert model.get_layer("flatten").output.shape == (None, 6 * 6 * 256)


def test_one_tower_of_alexnet_takes_what_its_shapes_say():
    # height * width * kernel area * channels read * channels written, by hand
    layers = [
        *(56**2 * 121 * 3 * 96, 27**2 * 25 * 96 * 256, 13**2 * 9 * 256 * 384),
        *(13**2 * 9 * 384 * 384, 13**2 * 9 * 384 * 256),
    ]
    model = alexnet(units=(32,), classes=7)
    assert conv_macs(model) == sum(layers)
    assert costs.macs(model) == sum(layers) + 9216 * 32 + 32 * 7


def test_googlenet_is_the_papers():
    model = googlenet(batch_norm=False)
    # The paper's table rounds to 1.5 billion operations; the Caffe network has these parameters.
    assert 1.5e9 < costs.macs(model) < 1.6e9
    assert model.count_params() == 6_998_552
    assert len(read_sites(model)) == 57
    assert model.get_layer("5b").output.shape == (None, 7, 7, 1024)


def test_batch_norm_takes_the_place_of_biases():
    plain, normed = (googlenet((64, 64, 3), batch_norm=flag) for flag in (False, True))
    filters = sum(site.filters for site in read_sites(plain))
    assert normed.count_params() == plain.count_params() + 3 * filters
    assert costs.macs(normed) == costs.macs(plain)


def test_squeezenet_is_version_1_1():
    model = squeezenet()
    assert model.count_params() == 1_235_496  # of the authors' network
    assert model.get_layer("fire9").output.shape == (None, 13, 13, 512)


def test_resnet_20_is_the_papers():
    model = resnet()
    # The paper's table 6 rounds to .27 million parameters; the shortcuts of option B are 3,000.
    assert 0.27e6 < model.count_params() < 0.276e6
    assert round(conv_macs(model) / 1e6) == 41
    assert len(read_sites(resnet(depth=32))) == 31 + 2
    with pytest.raises(ValueError, match="depth must be 6 n"):
        resnet(depth=21)


def test_a_network_begins_with_a_given_tensor():
    pixels = keras.Input((32, 32, 3))
    scaled = keras.layers.Rescaling(1 / 255)(pixels)
    model = squeezenet((32, 32, 3), 4, input_tensor=scaled)
    plain = squeezenet((32, 32, 3), 4)
    plain.set_weights(model.get_weights())
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    np.testing.assert_allclose(model(images), plain(images / np.float32(255)), atol=1e-5)


@BUILDERS
def test_any_classes_one_channel_and_a_training_step(build):
    keras.utils.set_random_seed(0)
    model = build((96, 80, 1), 5, dropout=0.1)
    assert model.name == build.__name__
    images = np.random.default_rng(0).random((2, 96, 80, 1), np.float32)
    outputs = np.asarray(model(images))
    assert outputs.shape == (2, 5)
    np.testing.assert_allclose(outputs.sum(1), 1, atol=1e-5)
    before = model.get_weights()
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    assert np.isfinite(model.train_on_batch(images, np.array([0, 4])))
    changed = [not np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)]
    assert any(changed)


@BUILDERS
def test_logits_and_saving(build, tmp_path):
    model = build((80, 80, 2), 3, classifier_activation=None)
    images = np.random.default_rng(1).random((2, 80, 80, 2), np.float32)
    model.save(tmp_path / "zoo.keras")
    again = keras.models.load_model(tmp_path / "zoo.keras")
    np.testing.assert_allclose(again(images), model(images), atol=1e-5)
    assert not np.allclose(np.asarray(model(images)).sum(1), 1, atol=1e-3)


def test_an_input_too_small_is_refused():
    with pytest.raises(ValueError, match="pool"):
        alexnet((30, 30, 3))
