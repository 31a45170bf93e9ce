"""What was asked for: refused before any work where it makes no sense, compared with what came."""

import warnings
from typing import Any

import numpy as np

from espace_tf.checks import check_choice, check_speedup, require_runtime
from espace_tf.config import EspaceConfig
from espace_tf.data.batches import batches, named_inputs
from espace_tf.network import graph
from espace_tf.network.sites import read_sites
from espace_tf.planning.planner import UnreachableSpeedWarning
from espace_tf.records.plan import Plan
from espace_tf.rewriting.fuse import check_not_fused


def checked(
    model: Any, data: Any, speedup: float | None, config: EspaceConfig | None, verbose: int
) -> EspaceConfig:
    """The configuration, after everything that can be refused without work has been."""
    graph.library(model)
    config = EspaceConfig() if config is None else config
    if not isinstance(config, EspaceConfig):
        raise TypeError(f"config must be an EspaceConfig or None. Received: {config!r}")
    if speedup is not None or config.profile != "faithful":
        check_speedup(speedup)
    check_choice(verbose, "verbose", (0, 1, 2))
    require_runtime(config.runtime)
    check_not_fused(model)
    _check_sites(model, config)
    _check_weights(model)
    if data is not None:
        next(batches(data, 1, 1, inputs=named_inputs(model)))
    return config


def _check_sites(model: Any, config: EspaceConfig) -> None:
    sites = read_sites(model)
    if not sites:
        raise ValueError(f"model {model.name!r} has no convolution: there is nothing to compress")
    reasons = {
        site.path: site.skip or "excluded by the configuration"
        for site in sites
        if site.skip or not config.selects(site.path)
    }
    if len(reasons) == len(sites):
        raise ValueError(
            f"model {model.name!r} has no convolution that may be touched: "
            + "; ".join(f"{path}: {reason}" for path, reason in reasons.items())
        )


def _check_weights(model: Any) -> None:
    for path, layer in graph.layers(model).items():
        for weight in layer.weights:
            if not np.isfinite(np.asarray(weight, np.float32)).all():
                raise ValueError(
                    f"layer {path!r} has NaN or infinite values in its weight {weight.name!r}: "
                    "the model must be trained and sound before it is compressed"
                )


def warn_if_off(made: Plan, config: EspaceConfig, stacklevel: int = 3) -> None:
    """Warns if a plan changes nothing or was measured too far from the speed asked for."""
    if not made.layers:
        reasons = list(dict.fromkeys(made.skipped.values()))
        asked = "" if made.speedup is None else f"speedup {made.speedup:.4g} was asked for, but "
        warnings.warn(
            f"{asked}the model is returned unchanged: {'; '.join(reasons[:3])}"
            + ("; further reasons in espace_plan.skipped" if len(reasons) > 3 else ""),
            UnreachableSpeedWarning,
            stacklevel=stacklevel,
        )
        return
    if made.speedup is None or abs(made.measured_speedup / made.speedup - 1) <= config.tolerance:
        return
    warnings.warn(
        f"speedup {made.speedup:.4g} was asked for, {made.measured_speedup:.2f} was measured "
        f"({config.runtime}, batches of {config.batch_size}); the plan predicted "
        f"{made.predicted_speedup:.2f}",
        UnreachableSpeedWarning,
        stacklevel=stacklevel,
    )
