"""What makes two training runs the same: a checkpoint is only continued by the run that made it."""

import hashlib
import json
from typing import Any

import numpy as np
import tensorflow as tf

from espace_tf.distribution.replicas import Replicas


def weights_hash(model) -> str:
    """A hash of a model's weights."""
    digest = hashlib.sha256()
    for weight in model.weights:
        digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return digest.hexdigest()[:16]


def judgement(judge: Any | None, losses: list[Any]) -> dict[str, Any]:
    """What labels are judged by: all that `compile` was told of losses and metrics.

    Args:
        judge: a compiled model, or None without labels.
        losses: one per output.
    """
    config = getattr(judge, "_compile_config", None)
    told = {} if config is None else config.config
    names = ("loss_weights", "metrics", "weighted_metrics")
    return {"loss": described(losses), **{name: described(told.get(name)) for name in names}}


def described(thing: Any) -> Any:
    """A loss, metric, optimizer or schedule, or a nest of them, as JSON, the same in each process.

    Example:
        >>> described(["mse", np.tanh])
        ['mse', 'tanh']
    """
    if isinstance(thing, dict):
        return {str(key): described(value) for key, value in thing.items()}
    if isinstance(thing, list | tuple):
        return [described(value) for value in thing]
    if thing is None or isinstance(thing, str | bool | int | float):
        return thing
    if hasattr(thing, "get_config"):  # without names, which are numbered anew in every process
        config = {key: value for key, value in thing.get_config().items() if key != "name"}
        return {"class": type(thing).__name__, **described(config)}
    if isinstance(thing, np.ndarray | np.generic) or tf.is_tensor(thing):
        return np.asarray(thing).tolist()
    return getattr(thing, "__qualname__", None) or type(thing).__name__


def check_alike(team: Replicas, run: dict[str, Any]) -> None:
    """Raises ValueError, in every process, unless all processes make the same run.

    Args:
        team: of the run.
        run: what it is, JSON-able.
    """
    mine = json.loads(json.dumps(run))
    chiefs = json.loads(team.from_chief(json.dumps(run).encode()))
    if team.any(mine != chiefs):
        names = sorted(name for name in mine if mine[name] != chiefs[name]) or ["in another one"]
        raise ValueError(
            "All processes of a strategy must make the same call with the same data and weights. "
            f"Received: other ones than the chief's: {', '.join(names)}"
        )
