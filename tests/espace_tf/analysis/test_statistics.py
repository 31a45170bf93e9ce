"""Statistics against patches cut by hand and one gradient tape per sample."""

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from espace_tf.analysis import statistics as moments
from espace_tf.network import graph
from espace_tf.network.sites import at_size, read_sites
from espace_tf.numerics import masks
from espace_tf.objectives import targets

SEED = 11
LIBRARIES = pytest.mark.parametrize("library", [keras, tf_keras], ids=["keras", "tf_keras"])


def network(library):
    """A shared convolution, a fused activation, groups, strides and dilation."""
    library.utils.set_random_seed(SEED)
    layers, x = library.layers, library.Input((7, 6, 4))
    shared = layers.Conv2D(4, (3, 2), padding="same", activation="relu", name="shared")
    y = shared(shared(x))
    y = layers.Conv2D(6, 2, strides=(2, 1), groups=2, activation="tanh", name="grouped")(y)
    y = layers.Conv2D(5, 2, dilation_rate=2, padding="same", use_bias=False, name="dilated")(y)
    y = layers.Dense(3, name="head")(layers.GlobalAveragePooling2D()(y))
    model = library.Model(x, y)
    random = np.random.default_rng(SEED)
    model.set_weights([random.normal(size=w.shape) * 0.5 for w in model.get_weights()])
    return model


def samples(count=6):
    random = np.random.default_rng(SEED + 1)
    return random.normal(size=(count, 7, 6, 4)).astype(np.float32), random.integers(0, 3, count)


def in_batches(x, y, size):
    return [(x[i : i + size], y[i : i + size]) for i in range(0, len(x), size)]


def forward(model, x):
    """The network of plain TensorFlow operations: every convolution's inputs and responses."""
    known = graph.layers(model)
    inputs, responses = [], []

    def convolve(x, path, padding, strides=1, dilations=1, groups=1):
        weights = known[path].get_weights()
        inputs.append((path, x))
        # Zeros between the taps: some processors have no gradient of a dilated convolution.
        height, width, *channels = weights[0].shape
        size = dilations * (height - 1) + 1, dilations * (width - 1) + 1
        spaced = np.zeros((*size, *channels), np.float32)
        spaced[::dilations, ::dilations] = weights[0]
        weights[0] = spaced
        parts = zip(tf.split(x, groups, -1), tf.split(weights[0], groups, -1), strict=True)
        y = tf.concat([tf.nn.conv2d(a, k, strides, padding) for a, k in parts], -1)
        y = y + weights[1] if len(weights) > 1 else y
        responses.append((path, y))
        return y

    y = tf.nn.relu(convolve(x, "shared", "SAME"))
    y = tf.nn.relu(convolve(y, "shared", "SAME"))
    y = tf.tanh(convolve(y, "grouped", "VALID", strides=(2, 1), groups=2))
    y = convolve(y, "dilated", "SAME", dilations=2)
    kernel, bias = known["head"].get_weights()
    return tf.reduce_mean(y, [1, 2]) @ kernel + bias, inputs, responses


def cut(inputs, site):
    """Every patch of every image: [n, kh, kw, Cin] in float64."""
    x = np.asarray(inputs, float)
    (kh, kw), (sh, sw), (dh, dw) = site.kernel_size, site.strides, site.dilation_rate
    height, width = x.shape[1:3]
    oh, ow = site.output_sizes[0]
    pads = [(0, 0), (0, 0)]
    if site.padding == "same":
        needed = [
            (oh - 1) * sh + (kh - 1) * dh + 1 - height,
            (ow - 1) * sw + (kw - 1) * dw + 1 - width,
        ]
        pads = [(max(n, 0) // 2, max(n, 0) - max(n, 0) // 2) for n in needed]
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    return np.stack(
        [
            x[n, i * sh : i * sh + (kh - 1) * dh + 1 : dh, j * sw : j * sw + (kw - 1) * dw + 1 : dw]
            for n in range(len(x))
            for i in range(oh)
            for j in range(ow)
        ]
    )  # fmt: skip


@LIBRARIES
def test_patch_moments_of_all_positions(library):
    model, (x, y) = network(library), samples()
    sites = {site.path: site for site in read_sites(model)}
    # "1 image" makes every position wanted.
    found = moments.input_moments(model, list(sites.values()), in_batches(x, y, 4), 1, SEED)
    _, inputs, _ = forward(model, x)
    assert set(found) == {"shared", "grouped", "dilated"}
    for path, site in sites.items():
        patches = np.concatenate([cut(value, site) for name, value in inputs if name == path])
        for group, part in enumerate(np.split(patches, site.groups, axis=-1)):
            flat = part.reshape(len(part), -1)
            mean, covariance = found[path]["mean"][group], found[path]["covariance"][group]
            np.testing.assert_allclose(mean, flat.mean(0), atol=1e-5, err_msg=path)
            expected = np.cov(flat, rowvar=False, bias=True)
            np.testing.assert_allclose(covariance, expected, atol=2e-5, err_msg=path)


def open_and_sized(library, sizes):
    """The network of any size, a sample of each size, and the same network's sites there."""
    library.utils.set_random_seed(SEED)
    layers, inputs = library.layers, library.Input((None, None, 4))
    y = layers.Conv2D(6, (3, 2), strides=(2, 1), padding="same", name="first")(inputs)
    y = layers.Conv2D(3, 2, dilation_rate=2, activation="tanh", name="second")(y)
    model = library.Model(inputs, layers.GlobalAveragePooling2D()(y))
    random = np.random.default_rng(SEED)
    images = [random.normal(size=(2, *size, 4)).astype(np.float32) for size in sizes]
    return model, images, [at_size(model, read_sites(model), size) for size in sizes]


@LIBRARIES
def test_batches_of_different_sizes(library):
    model, images, by_size = open_and_sized(library, [(9, 8), (14, 11), (9, 9)])
    assert all(site.mask_skip and not site.skip for site in by_size[0])
    batches = [(x, None) for x in images]
    # "1 image" makes every position of the first size wanted, which are too few for the others.
    found = moments.input_moments(model, by_size[1], batches, 1, SEED)
    target = targets.resolve(model, None, batches[0], SEED).target
    gradients = moments.output_statistics(model, by_size[0], batches, target, lambda site: False)
    first = graph.layers(model)["first"]
    for index, path in enumerate(("first", "second")):
        patches, moment, positions = [], 0.0, 0
        for step, (x, sites) in enumerate(zip(images, by_size, strict=True)):
            read = x if path == "first" else first(x)
            patches.append(cut(read, sites[index]).reshape(-1, found[path]["mean"].shape[1]))
            with tf.GradientTape() as tape:
                y = tf.Variable(first(x))
                z = y if path == "first" else tf.Variable(linear(model, y))
                loss = target(rest(model, z, path), None, step)
            g = tape.gradient(loss, z).numpy().reshape(-1, sites[index].filters).astype(float)
            moment, positions = moment + g.T @ g, positions + len(g)
        flat = np.concatenate(patches)
        np.testing.assert_allclose(found[path]["mean"][0], flat.mean(0), atol=1e-5)
        expected = np.cov(flat, rowvar=False, bias=True)
        np.testing.assert_allclose(found[path]["covariance"][0], expected, atol=2e-5)
        wanted = moment / positions
        scale = 1e-4 * np.abs(wanted).max()
        np.testing.assert_allclose(gradients[path]["gradient"], wanted, atol=scale)


def linear(model, y):
    """What the second convolution gives before its activation."""
    kernel, bias = graph.layers(model)["second"].get_weights()
    spaced = np.zeros((3, 3, *kernel.shape[2:]), np.float32)
    spaced[::2, ::2] = kernel
    return tf.nn.conv2d(y, spaced, 1, "VALID") + bias


def rest(model, y, path):
    """The outputs from the response of a convolution on."""
    z = linear(model, y) if path == "first" else y
    return tf.reduce_mean(tf.tanh(z), [1, 2])


def test_large_values_that_hardly_vary_do_not_cancel():
    random = np.random.default_rng(SEED)
    x = (300 + random.normal(size=(40, 7, 6, 4))).astype(np.float32)
    x[..., 1], x[..., 2] = 0, 1e4  # dead channels
    x[..., 3] *= 1e-3
    model = keras.Sequential([keras.Input((7, 6, 4)), keras.layers.Conv2D(3, (2, 3), name="conv")])
    (site,) = read_sites(model)
    batches = in_batches(x, np.zeros(40), 16)  # the last one is smaller
    found = moments.input_moments(model, [site], batches, 1, SEED)["conv"]
    flat = cut(x, site).reshape(-1, 24)
    covariance, expected = found["covariance"][0], np.cov(flat.T, bias=True)
    limit = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert (np.abs(covariance - expected) <= 1e-5 * limit).all(), f"seed {SEED}"
    np.testing.assert_allclose(found["mean"][0], flat.mean(axis=0), rtol=1e-9)
    assert np.linalg.eigvalsh(covariance).min() > -1e-6


def test_drawn_positions_are_seeded_enough_and_close():
    model, (x, y) = network(keras), samples(64)
    (site,) = (site for site in read_sites(model) if site.path == "shared")
    few = moments._positions_needed(site, 42, 64)
    assert few == 4 and moments._positions_needed(site, 42, 10) == 24  # 10 * 24 patches
    found = [
        moments.input_moments(model, [site], in_batches(x, y, 16), 64, seed)["shared"]
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(found[0]["covariance"], found[1]["covariance"])
    assert np.abs(found[0]["covariance"] - found[2]["covariance"]).max() > 1e-4
    whole = moments.input_moments(model, [site], in_batches(x, y, 16), 1, 0)["shared"]
    scale = np.abs(whole["covariance"]).max()
    np.testing.assert_allclose(found[0]["mean"], whole["mean"], atol=0.3 * np.sqrt(scale))


@pytest.mark.parametrize("library, batch", [(keras, 4), (tf_keras, 1)])
def test_gradient_statistics_of_single_samples(library, batch):
    model, (x, labels) = network(library), samples()
    sites = read_sites(model)
    target = targets.resolve(model, None, (x, labels), SEED).target
    before, weights = np.asarray(model(x)), model.get_weights()
    found = moments.output_statistics(
        model, sites, in_batches(x, labels, batch), target, lambda site: site.path != "grouped"
    )
    np.testing.assert_array_equal(np.asarray(model(x)), before)
    assert all(map(np.array_equal, model.get_weights(), weights))
    layer = graph.layers(model)["grouped"]
    assert layer.activation.__name__ == "tanh" and "call" not in vars(layer)
    assert set(found["grouped"]) == {"gradient"}
    gradients = [one_sample(model, *sample) for sample in zip(x, labels, strict=True)]
    expected = {site.path: loops(gradients, site) for site in sites}
    for path, statistics in found.items():
        for name, array in statistics.items():
            want = expected[path][name]
            assert array.shape == want.shape, (path, name)
            np.testing.assert_allclose(
                array, want, rtol=1e-3, atol=1e-5 * np.abs(want).max(), err_msg=f"{path} {name}"
            )


def one_sample(model, image, label):
    """(path, y, dL/dy) of every call of a convolution, from a tape of this sample alone."""
    with tf.GradientTape() as tape:
        image = tf.constant(image[None])
        tape.watch(image)
        scores, _, responses = forward(model, image)
        loss = tf.nn.sparse_softmax_cross_entropy_with_logits([label], scores)
    gradients = tape.gradient(loss, [y for _, y in responses])
    return [
        (path, np.asarray(y[0], float), np.asarray(g[0], float))
        for (path, y), g in zip(responses, gradients, strict=True)
    ]


def loops(gradients, site):
    """F, impact and damage table in NumPy float64, position by position."""
    oh, ow = site.output_sizes[0]
    moment = np.zeros((site.filters, site.filters))
    impact, table = np.zeros((oh, ow)), np.zeros((len(masks.OFFSETS), oh, ow))
    calls = [(y, g) for sample in gradients for path, y, g in sample if path == site.path]
    for y, g in calls:
        moment += np.einsum("ijc,ijd->cd", g, g)
        impact += np.abs(y * g).sum(-1)
        for index, (dy, dx) in enumerate(masks.OFFSETS):
            for i in range(max(0, -dy), min(oh, oh - dy)):
                for j in range(max(0, -dx), min(ow, ow - dx)):
                    table[index, i, j] += np.abs(g[i, j] * (y[i, j] - y[i + dy, j + dx])).sum()
    count = len(gradients)
    moment /= len(calls) * oh * ow
    return {"gradient": moment, "impact": impact / count, "damage_table": table / count}


def test_large_maps_take_damage_tables_from_the_first_images(monkeypatch):
    monkeypatch.setattr(moments, "_TABLE_VALUES", 0)
    monkeypatch.setattr(moments, "_TABLE_IMAGES", 4)
    model, (x, labels) = network(keras), samples()
    sites = read_sites(model)
    target = targets.resolve(model, None, (x, labels), SEED).target

    def statistics(count):
        data = in_batches(x[:count], labels[:count], 2)
        return moments.output_statistics(model, sites, data, target, lambda site: True)

    few, all_of_them = statistics(4), statistics(6)
    for path, found in few.items():
        table, more = found["damage_table"], all_of_them[path]
        np.testing.assert_allclose(more["damage_table"], table, rtol=1e-5, atol=1e-7 * table.max())
        assert not np.allclose(more["impact"], found["impact"], rtol=1e-3), path
