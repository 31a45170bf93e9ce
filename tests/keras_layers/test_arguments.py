import json

import numpy as np
import pytest

from espace_tf.keras_layers import DecomposedConv2D, MaskedConv2D, for_library


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"filters": 0}, "filters must be at least 1. Received: 0"),
        ({"filters": 2.5}, "filters must be an integer. Received: 2.5"),
        ({"filters": 4, "groups": 3}, "groups must divide filters. Received: filters=4, groups=3"),
        ({"kernel_size": (3, 3, 3)}, r"kernel_size must be two integers.*Received: \(3, 3, 3\)"),
        ({"kernel_size": 0}, "kernel_size .*Received: 0"),
        ({"kernel_size": None}, "kernel_size must be two integers.*Received: None"),
        ({"kernel_size": 3.5}, "kernel_size must be two integers.*Received: 3.5"),
        ({"kernel_size": True}, "kernel_size must be two integers.*Received: True"),
        ({"strides": (0, 1)}, r"strides .*Received: \(0, 1\)"),
        ({"strides": 2, "dilation_rate": 2}, "strides and dilation_rate cannot both"),
        ({"padding": "causal"}, "padding must be one of valid, same. Received: 'causal'"),
        ({"data_format": "channels_first"}, "data_format must be .*Received: 'channels_first'"),
        ({"positions": []}, "positions is empty"),
        ({"positions": [-1, 3]}, "positions must lie in .*Received: -1 to 3"),
        ({"positions": [[1, 2]]}, r"positions must be flat.*Received: shape \(1, 2\)"),
        ({"colour": 3}, "colour"),
    ],
)
@pytest.mark.parametrize("layer", ["MaskedConv2D", "DecomposedConv2D"])
def test_a_wrong_argument_is_refused_in_words(library, layer, wrong, words):
    arguments = {"filters": 4, "kernel_size": 3, **wrong}
    if layer == "DecomposedConv2D":
        arguments["rank"] = 2
    with pytest.raises((ValueError, TypeError), match=words):
        getattr(for_library(library), layer)(**arguments)


@pytest.mark.parametrize("positions", [[0.5], np.ones(9, bool)])
def test_positions_are_integers(positions):
    with pytest.raises(TypeError, match="positions must be integers"):
        MaskedConv2D(4, 3, positions=positions)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"rank": 0}, "rank must be at least 1. Received: 0"),
        ({"rank": "full"}, "rank must be an integer. Received: 'full'"),
        ({"order": "diagonal"}, "order must be one of vertical, horizontal"),
        ({"order": None}, "order must be one of .*Received: None"),
    ],
)
def test_a_wrong_rank_or_order_is_refused_in_words(wrong, words):
    with pytest.raises((ValueError, TypeError), match=words):
        DecomposedConv2D(**{"filters": 4, "kernel_size": 3, "rank": 2, **wrong})


@pytest.mark.parametrize(
    ("options", "shape", "words"),
    [
        ({}, (None, 8, 8, None), "input channels must be known"),
        ({"groups": 2}, (None, 8, 8, 3), "divisible by groups. Received: .*groups=2"),
        ({}, (None, 2, 8, 3), "does not fit into"),
        ({"positions": [0]}, (None, None, 8, 3), r"known height and width. Received: \(None, 8\)"),
        ({"positions": [0, 36]}, (None, 8, 8, 3), r"positions must lie in \[0, 36\). .* 0 to 36"),
    ],
)
def test_an_input_shape_that_cannot_be_is_refused_in_words(options, shape, words):
    with pytest.raises(ValueError, match=words):
        MaskedConv2D(4, 3, **options).build(shape)


def test_a_rank_above_the_full_one_is_refused_in_words():
    for order, full in (("vertical", 6), ("horizontal", 9)):
        layer = DecomposedConv2D(16, (2, 3), rank=10, order=order)
        with pytest.raises(ValueError, match=f"rank must be at most {full}, .*Received: 10"):
            layer.build((None, 8, 8, 3))


def test_an_input_of_another_rank_or_size_is_refused_in_words(library):
    layer = for_library(library).MaskedConv2D(4, 3, positions=[0, 5])
    with pytest.raises(ValueError, match="ndim=4"):
        layer(np.ones((8, 8, 3), "float32"))
    layer(np.ones((1, 8, 8, 3), "float32"))
    with pytest.raises(ValueError, match=r"height and width \(8, 8\).*\s*Received: \(9, 9\)"):
        layer(np.ones((1, 9, 9, 3), "float32"))


def test_positions_remember_the_map_they_were_chosen_on():
    layer = MaskedConv2D(4, 3, positions=[3, 0, 5])
    assert layer.get_config()["positions"] == [0, 3, 5]
    layer.build((None, 8, 8, 3))
    config = json.loads(json.dumps(layer.get_config()["positions"]))
    again = MaskedConv2D(4, 3, positions=config)
    assert again.positions.tolist() == [0, 3, 5]
    with pytest.raises(ValueError, match=r"map of \(6, 6\).* map of \(7, 7\): choose them again"):
        again.build((None, 9, 9, 3))


def test_another_backend_is_refused_in_words(monkeypatch):
    import keras

    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(RuntimeError, match="set KERAS_BACKEND=tensorflow. Received: .*'jax'"):
        MaskedConv2D(4, 3)


def test_a_stock_convolution_gives_the_arguments(library):
    stock = library.layers.Conv2D(
        6, (3, 1), 2, "same", activation="relu", kernel_regularizer="l2", name="conv"
    )
    layer = for_library(library).MaskedConv2D.from_config(stock.get_config())
    config = layer.get_config()
    assert {name: config[name] for name in stock.get_config()} == stock.get_config()
    assert config["positions"] is None
