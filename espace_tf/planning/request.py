"""What was asked for: refused before any work where it makes no sense, compared with what came."""

import os
from os import PathLike
from typing import Any

from espace_tf.analysis.analyze import check_network
from espace_tf.checks import check_choice, check_number, check_speedup, warn
from espace_tf.config import EspaceConfig, EspaceWarning, runtime_title, usable
from espace_tf.data.sizes import fitted
from espace_tf.network import graph
from espace_tf.network.network import Network
from espace_tf.planning.budget import DEFAULT_LOSS, Budget
from espace_tf.planning.planner import LEAST_LOSS, UnreachableSpeedWarning
from espace_tf.records.comparison import Comparison
from espace_tf.records.plan import Plan
from espace_tf.rewriting.apply import warn_of_class
from espace_tf.rewriting.fuse import check_not_fused

# Without data and without a speed: what most networks reach from their weights alone.
MODEST = 1.5
# Below this agreement with the given network nobody should be left to find out by himself.
_ALARMING = 0.8


def checked(
    model: Any, data: Any, config: EspaceConfig | None, verbose: int
) -> tuple[Network, EspaceConfig]:
    """The model, read and copied, and the configuration, after everything has been refused that can
    be without work.
    """
    if isinstance(model, str | PathLike):
        raise TypeError(
            f"model must be a Keras model, not a path. Received: {os.fspath(model)!r}; write\n"
            f"    model = keras.models.load_model({os.fspath(model)!r})\n"
            "    small = espace_tf.compress(model, ...)\n"
            "with tf_keras in the place of keras for a SavedModel folder or a file of Keras 2"
        )
    graph.library(model)
    config = usable(config)
    check_choice(verbose, "verbose", (0, 1, 2))
    check_not_fused(model)
    network = Network.read(model)
    check_network(network, config)
    config = fitted(network.model, data, config)
    copied = network.copied(config.input_size)
    warn_of_class(model, copied.model)
    return copied, config


def goal(
    data: Any,
    speedup: float | None,
    max_loss_increase: float | None,
    max_accuracy_drop: float | None,
    min_agreement: float | None,
    profile: str,
) -> tuple[float | None, Budget | None]:
    """The speed and the budget that are meant.

    Raises:
        ValueError: a number out of its range, or a budget where nothing can be compared.
    """
    if speedup is not None:
        check_speedup(speedup)
    asked = {"max_loss_increase": max_loss_increase, "max_accuracy_drop": max_accuracy_drop}
    for name, value in asked.items():
        if value is not None:
            check_number(value, name, LEAST_LOSS)
    asked["min_agreement"] = min_agreement
    if min_agreement is not None:
        check_number(min_agreement, "min_agreement", 0.0)
        if min_agreement >= 1:
            raise ValueError(
                f"min_agreement must be below 1: only the given model always answers as it does. "
                f"Received: {min_agreement}"
            )
    given = [name for name, value in asked.items() if value is not None]
    if given and (data is None or profile == "faithful"):
        raise ValueError(
            f"{given[0]} needs data, and the default profile. Received: "
            + ("data=None" if data is None else f"profile={profile!r}")
            + "; give data, or speedup instead"
        )
    if given:
        return speedup, Budget(
            loss=max_loss_increase, accuracy=max_accuracy_drop, agreement=min_agreement
        )
    if speedup is not None or profile == "faithful":
        return speedup, None
    if data is not None:
        return None, Budget(loss=DEFAULT_LOSS)
    warn(
        f"no data and no speedup were given: the model is made {MODEST:g} times faster by what its "
        "weights tell. A few hundred images, compress(model, images), find what the network can "
        "lose without harm: more speed at the same accuracy",
        EspaceWarning,
    )
    return MODEST, None


def warn_if_off(made: Plan, config: EspaceConfig) -> None:
    """Warns if a plan changes nothing, misses the speed asked for, or changes many answers.

    Faster than asked is no reason where only one layer was changed, the least that there is.
    """
    if not made.layers:
        reasons = list(dict.fromkeys(made.skipped.values()))
        asked = "" if made.speedup is None else f"speedup {made.speedup:.4g} was asked for, but "
        warn(
            f"{asked}the model is returned unchanged: {'; '.join(reasons[:3])}"
            + ("; further reasons in espace_plan.skipped" if len(reasons) > 3 else ""),
            UnreachableSpeedWarning,
        )
        return
    seen = "" if made.comparison is None else f"; {made.comparison}"
    off = made.measured_speedup / made.speedup - 1 if made.speedup else 0.0
    if off < -config.tolerance:
        predicted = f"; the plan predicted {made.predicted_speedup:.2f}"
        warn(_numbers(made, config) + predicted + seen, UnreachableSpeedWarning)
    elif made.comparison is not None and _is_alarming(made.comparison):
        warn(
            f"many answers have changed{seen}. Train it (fine_tune with teacher=model), or ask for "
            "less: a lower speedup, or max_loss_increase",
            EspaceWarning,
        )
    elif off > config.tolerance and len(made.layers) > 1:
        warn(
            f"{_numbers(made, config)}: more than was needed{seen}. Ask for less, or again when "
            "nothing else runs, to keep more of the answers",
            EspaceWarning,
        )


def _numbers(made: Plan, config: EspaceConfig) -> str:
    return (
        f"speedup {made.speedup:.4g} was asked for, {made.measured_speedup:.2f} was measured "
        f"({runtime_title(config.runtime)}, batches of {config.batch_size})"
    )


def _is_alarming(seen: Comparison) -> bool:
    """Whether many answers have changed, and not for want of any difference between them."""
    return seen.agreement < _ALARMING and seen.loss_increase > DEFAULT_LOSS
