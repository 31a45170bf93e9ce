"""What training changes of a model beside its weights, and puts back: compile state and flags."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from espace_tf.checks import warn
from espace_tf.config import EspaceWarning
from espace_tf.network import graph

# What `compile` sets in Keras 3 and in tf_keras, and the functions that are traced with it.
_FUNCTIONS = ("train_function", "train_tf_function", "test_function")
_COMPILED = (
    *("loss", "compiled", "_compile_loss", "_compile_metrics", "_loss_tracker", "_compile_config"),
    *("compiled_loss", "compiled_metrics", "_is_compiled", "_steps_per_execution"),
)


@contextlib.contextmanager
def compiled_with(model: Any, optimizer: Any, judge: Any | None) -> Iterator[None]:
    """While open, the model is compiled with what trains it, as callbacks find it in `fit`.

    Args:
        model: afterwards it is compiled, or not compiled, as it was.
        optimizer: becomes `model.optimizer`.
        judge: a compiled model whose losses and metrics the model has meanwhile; None or the
            model itself: its own.
    """
    names = ("optimizer", *_COMPILED, *_FUNCTIONS)
    before = {name: vars(model)[name] for name in names if name in vars(model)}
    state = vars(model if judge is None else judge)
    values = {name: state[name] for name in _COMPILED if name in state}
    values.update({name: None for name in _FUNCTIONS if name in before}, optimizer=optimizer)
    config = values.get("_compile_config")
    if config is not None:  # what a file of the model, saved meanwhile, compiles it with
        values["_compile_config"] = type(config)(**{**config.config, "optimizer": optimizer})
    vars(model).update(values)
    try:
        yield
    finally:
        for name in names:
            vars(model).pop(name, None)
        vars(model).update(before)


def compiled_like(copy: Any, model: Any) -> Any:
    """The copy, with the very losses, metrics and optimizer of the model; it is never trained."""
    names = ("optimizer", *_COMPILED)
    vars(copy).update({name: vars(model)[name] for name in names if name in vars(model)})
    return copy


def compile_again(judge: Any, model: Any) -> None:
    """Compiles a model with the losses of a compiled one, and with copies of its metrics."""
    told = getattr(model, "_compile_config", None)
    names = ("loss", "loss_weights", "metrics", "weighted_metrics")
    given = {"loss": model.loss} if told is None else told.config
    given = {name: given[name] for name in names if given.get(name) is not None}
    judge.compile(
        **{name: value if "loss" in name else copies(value) for name, value in given.items()}
    )


def copies(metrics: Any) -> Any:
    """A nest of metrics as `compile` takes them with a new object for each that has a config."""
    if isinstance(metrics, Mapping):
        return {name: copies(each) for name, each in metrics.items()}
    if isinstance(metrics, list | tuple):
        return [copies(each) for each in metrics]
    if not hasattr(metrics, "update_state"):
        return metrics
    try:
        return type(metrics).from_config(metrics.get_config())
    except Exception:  # of a function of the user's own; it may still do as it is
        return metrics


@contextlib.contextmanager
def trainable(model: Any, train_frozen: bool) -> Iterator[None]:
    """While open, all weights train if `train_frozen`; else a warning says how many do not.

    Args:
        model: afterwards every layer has the trainable flag that it had.
        train_frozen: whether layers with trainable=False train too.
    """
    # Variables have flags of their own in Keras 3, such as those under a LoRA.
    own_flags = graph.library(model).__name__ == "keras"
    flags = [(each, "_trainable", each.trainable) for each in model._flatten_layers()]
    flags += [(each, "trainable", each.trainable) for each in model.variables if own_flags]
    own = len(model.trainable_weights)
    if all(flag for _, name, flag in flags if name == "_trainable"):
        yield
        return
    for each in model._flatten_layers():  # a model that is True already would not pass it on
        each.trainable = True
    every = len(model.trainable_weights)
    try:
        if not train_frozen:
            _put_back(flags)
            if 0 < own < every:
                warn(
                    f"{own} of {every} weights train: the others belong to layers with "
                    "trainable=False and stay as they are. train_frozen=True trains all of them, "
                    "and leaves the flags as they are",
                    EspaceWarning,
                )
        yield
    finally:
        if train_frozen:
            _put_back(flags)


def _put_back(flags: list[tuple[Any, str, bool]]) -> None:
    for each, name, flag in flags:
        setattr(each, name, flag)
