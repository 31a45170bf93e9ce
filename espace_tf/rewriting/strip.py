"""A model made ready for inference: batch norms folded, dropout gone, stretches fused."""

from collections.abc import Callable
from typing import Any

import numpy as np

from espace_tf.checks import check_choice
from espace_tf.network import graph
from espace_tf.network.activations import activation
from espace_tf.network.copies import cloning
from espace_tf.network.copies.likeness import like
from espace_tf.network.layer_rules import COMPRESSED, rule
from espace_tf.rewriting import fuse as fusing
from espace_tf.rewriting.stock import stock_copy


def strip(model: Any, *, fuse: bool | None = None, stock: bool = False) -> Any:
    """A copy of a model for inference: batch norms folded into the layers before them, no dropout.

    Both become identities of the same name. A batch norm is folded where it alone reads a
    convolution or dense layer without activation; others stay, and so does what the graph calls
    with training=True. A ReLU that alone reads a masked or decomposed convolution becomes that
    layer's own activation, which saves a pass over its output.

    Args:
        model: a Functional or Sequential model of Keras 3 or tf_keras, compressed or not.
        fuse: True makes each stretch of a Keras 3 model that one native operation can run one
            `FusedGraph` layer, with the layers inside (see `espace_tf.rewriting.fuse`); they are no
            longer in the model's own list of layers. None: only in a model with masked or
            decomposed layers. tf_keras models have no such layers.
        stock: makes the model, nested models in it too, Functional ones of the library's own layers
            and operations: pairs of Conv2D for decomposed layers; Dense and Conv2D between two
            gathers for masked ones. What is saved loads without this package, and what knows Keras
            knows it: `model.quantize`, `model.export`, tfmot. A Keras file must be a .keras one.

    Returns:
        The new model; the same outputs at inference, to float rounding. `espace_plan` is kept.

    Raises:
        ValueError: a flag that is neither True nor False; fuse=True together with stock=True: a
            fused graph is no stock layer; or the model has no known inputs.
        RuntimeError: eager execution is off.

    Example:
        >>> rows = espace_tf.benchmark(strip(model), strip(small), batch_size=16)
    """
    if fuse is not None:
        check_choice(fuse, "fuse", (True, False))
    check_choice(stock, "stock", (True, False))
    if stock and fuse:
        raise ValueError(
            "stock=True makes a model of Keras's own layers, of which a fused graph is none. "
            "Received: fuse=True too; leave one of them out"
        )
    graph.check_eager(model)
    if graph.is_container(model) and not getattr(model, "inputs", None):
        raise ValueError(
            f"model {model.name!r} has no known inputs: call it on data, or give it an Input"
        )
    stripped = fold(model)
    if stock:
        stripped = stock_copy(stripped)
    if hasattr(model, "espace_plan"):
        stripped.espace_plan = model.espace_plan
    if fuse is None:
        known = graph.layers(model).values()
        fuse = not stock and any(rule(layer).kind in COMPRESSED for layer in known)
    return fusing.fuse(stripped) if fuse else stripped


def fold(model: Any, wanted: Callable[[Any], bool] = lambda layer: True) -> Any:
    """A copy of a model whose layers have what follows them in their weights and activations.

    Args:
        model: a Functional or Sequential model of Keras 3 or tf_keras.
        wanted: whether a layer may take in the batch norm after it, or be left out if it does
            nothing at inference.

    Returns:
        The copy, with Identity layers for those that are gone.
    """
    known, library, training = graph.layers(model), graph.library(model), graph.trained(model)
    pairs = {
        path: known[norm]
        for path, norm in graph.single_consumers(model)
        if norm not in training and wanted(known[path]) and _folds(known[path], known[norm])
    }
    folded = {id(norm) for norm in pairs.values()}
    activations = _activations(model, folded)
    folded |= {id(known[after]) for after, _ in activations.values()}

    def replace(path: str, layer: Any) -> Any:
        nothing = wanted(layer) and rule(layer).kind == "identity" and path not in training
        if id(layer) in folded or nothing:
            return library.layers.Identity(name=layer.name, dtype=layer.get_config()["dtype"])
        changes = {"use_bias": True} if path in pairs else {}
        if path in activations:
            changes["activation"] = activations[path][1]
        return like(layer, **changes) if changes else None

    weights = {path: known[path].get_weights() for path in activations}
    weights |= {path: _fold(known[path], norm) for path, norm in pairs.items()}
    return cloning.clone_with(model, replace, weights)


def _folds(layer: Any, norm: Any) -> bool:
    """Whether a batch norm after a layer is but other weights of that layer."""
    if rule(norm).kind != "batch_norm" or rule(layer).fold is None or activation(layer) != "none":
        return False
    rank = len(layer.output.shape)
    first = getattr(layer, "data_format", None) == "channels_first"
    return [axis % rank for axis in np.atleast_1d(norm.axis)] == [1 if first else rank - 1]


def _activations(model: Any, folded: set[int]) -> dict[str, tuple[str, str]]:
    """(path of the activation layer, its name) by layer of ours that it alone reads.

    A batch norm between them counts as gone when it is folded.
    """
    known, consumers = graph.layers(model), dict(graph.single_consumers(model))
    found = {}
    for path, after in consumers.items():
        layer = known[path]
        if id(known[after]) in folded:
            after = consumers.get(after)
        linear = rule(layer).kind in COMPRESSED and activation(layer) == "none"
        if linear and after and rule(known[after]).kind == "activation":
            if (name := activation(known[after])) in ("relu", "relu6"):
                found[path] = (after, name)
    return found


def _fold(layer: Any, norm: Any) -> list[np.ndarray]:
    """The layer's weights with y = gamma (x - mean) / sqrt(variance + epsilon) + beta in them."""
    *kernels, bias = layer.get_weights() if layer.use_bias else [*layer.get_weights(), 0.0]
    mean, variance = (v.numpy().astype(float) for v in (norm.moving_mean, norm.moving_variance))
    scale = 1.0 / np.sqrt(variance + norm.epsilon)
    if norm.scale:
        scale = scale * norm.gamma.numpy()
    shift = norm.beta.numpy() if norm.center else 0.0
    last = np.asarray(kernels[-1], float)
    axes = [axis % last.ndim for axis in rule(layer).fold]
    width = scale.reshape([size if axis in axes else 1 for axis, size in enumerate(last.shape)])
    return [*kernels[:-1], last * width, (np.asarray(bias, float) - mean) * scale + shift]
