"""A model made ready for inference: batch norms folded, dropout gone, stretches fused."""

from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.network import cloning, graph
from espace_tf.network.likeness import like
from espace_tf.rewriting import fuse as fusing

_NOISE = ("Dropout", "SpatialDropout2D", "AlphaDropout", "GaussianDropout", "GaussianNoise")
_OURS = ("MaskedConv2D", "DecomposedConv2D")
_FOLDED = ("Conv2D", "DepthwiseConv2D", "Dense", *_OURS)


def strip(model: Any, *, fuse: bool = True) -> Any:
    """A copy of a model for inference: batch norms folded into the layers before them, no dropout.

    Both become identities of the same name. A batch norm is folded where it alone reads a
    convolution or dense layer without activation; others stay, and so does what the graph calls
    with training=True. A ReLU that alone reads a masked or decomposed convolution becomes that
    layer's own activation, which saves a pass over its output.

    Args:
        model: a Functional or Sequential model of Keras 3 or tf_keras, compressed or not.
        fuse: in a Keras 3 model with masked or decomposed layers, makes each stretch that one
            native operation can run one `FusedGraph` layer, with the layers inside (see
            `espace_tf.rewriting.fuse`); they are no longer in the model's own list of layers. Other
            models have no such layers, nor have tf_keras models.

    Returns:
        The new model; the same outputs at inference, to float rounding. `espace_plan` is kept.

    Example:
        >>> espace_tf.benchmark(strip(model), strip(small), batch_size=16)
    """
    known, library = graph.layers(model), graph.library(model)
    pairs = {
        path: known[norm]
        for path, norm in graph.fold_candidates(model)
        if _folds(library, known[path], known[norm])
    }
    folded, training = {id(norm) for norm in pairs.values()}, graph.trained(model)
    activations = _activations(model, folded)
    folded |= {id(known[after]) for after, _ in activations.values()}

    def replace(path: str, layer: Any) -> Any:
        noise = type(layer).__name__ in _NOISE and path not in training
        if id(layer) in folded or noise:
            return library.layers.Identity(name=layer.name, dtype=layer.get_config()["dtype"])
        changes = {"use_bias": True} if path in pairs else {}
        if path in activations:
            changes["activation"] = activations[path][1]
        return like(layer, **changes) if changes else None

    weights = {path: known[path].get_weights() for path in activations}
    weights |= {path: _fold(known[path], norm) for path, norm in pairs.items()}
    stripped = cloning.clone_with(model, replace, weights)
    if hasattr(model, "espace_plan"):
        stripped.espace_plan = model.espace_plan
    compressed = any(type(layer).__name__ in _OURS for layer in known.values())
    return fusing.fuse(stripped) if fuse and compressed else stripped


def _folds(library: Any, layer: Any, norm: Any) -> bool:
    last = list(np.atleast_1d(norm.axis))[0] in (-1, len(layer.output.shape) - 1)
    return type(layer).__name__ in _FOLDED and _is(library, layer.activation, "linear") and last


def _is(library: Any, activation: Any, name: str) -> bool:
    """Whether a function is the library's, or TensorFlow's, of that name: others may bear it."""
    return any(getattr(each, name, None) is activation for each in (library.activations, tf.nn))


def _activations(model: Any, folded: set[int]) -> dict[str, tuple[str, str]]:
    """(path of the activation layer, its name) by layer of ours that it alone reads.

    A batch norm between them counts as gone when it is folded.
    """
    known, consumers = graph.layers(model), dict(graph.single_consumers(model))
    library = graph.library(model)
    found = {}
    for path, after in consumers.items():
        layer = known[path]
        if id(known[after]) in folded:
            after = consumers.get(after)
        if type(layer).__name__ not in _OURS or not after:
            continue
        name = _relu(library, known[after])
        if name and _is(library, layer.activation, "linear"):
            found[path] = (after, name)
    return found


def _relu(library: Any, layer: Any) -> str | None:
    """ "relu" or "relu6" if a layer is just that, else None."""
    if type(layer) is library.layers.Activation:
        names = (name for name in ("relu", "relu6") if _is(library, layer.activation, name))
        return next(names, None)
    if type(layer) is not library.layers.ReLU:
        return None
    config = layer.get_config()
    if config["negative_slope"] or config["threshold"]:
        return None
    most = config["max_value"]  # tf_keras gives arrays of no dimension
    return "relu" if most is None else "relu6" if most == 6 else None


def _fold(layer: Any, norm: Any) -> list[np.ndarray]:
    """The layer's weights with y = gamma (x - mean) / sqrt(variance + epsilon) + beta in them."""
    *kernels, bias = layer.get_weights() if layer.use_bias else [*layer.get_weights(), 0.0]
    mean, variance = (v.numpy().astype(float) for v in (norm.moving_mean, norm.moving_variance))
    scale = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * norm.gamma.numpy()
    shift = norm.beta.numpy() if norm.center else 0.0
    last = np.asarray(kernels[-1], float)
    width = scale.reshape(last.shape[2:]) if "Depthwise" in type(layer).__name__ else scale
    return [*kernels[:-1], last * width, (np.asarray(bias, float) - mean) * scale + shift]
