"""prepared(): a network analysed, and made ready to be planned for."""

import dataclasses
from collections.abc import Callable
from typing import Any

from espace_tf.analysis import analyze
from espace_tf.analysis.held_out import HeldOut
from espace_tf.analysis.synthetic import synthetic_inputs
from espace_tf.config import EspaceConfig
from espace_tf.network.network import Network
from espace_tf.planning.budget import Budget
from espace_tf.planning.search import Search
from espace_tf.progress import Progress
from espace_tf.records.plan import Plan
from espace_tf.timing.layer_times import LayerTimes
from espace_tf.timing.reference import Reference

# Inputs that are made up where there are no data.
_SYNTHETIC = 64


def prepared(
    network: Network,
    data: Any,
    config: EspaceConfig,
    loss: Any,
    progress: Progress,
    held_out: HeldOut | None = None,
    previous: Plan | None = None,
    budget: Budget | None = None,
    refit: Callable[[Any], Any] | None = None,
) -> Search:
    """A network analysed, and ready to be planned for.

    Without data it is analysed on inputs made up from its batch norms, if it has any: they are far
    better than the weights alone (`python -m benchmarks.without_data`).

    Args:
        network, data, config, loss: as for `compress`.
        progress: what is told of the analysis.
        held_out, previous: as for `Search`; without held_out a part of the data is held out.
        budget: what the network is going to be held to, if anything.
        refit: as for `Search`.

    Raises:
        ValueError: a budget that the labels do not tell.
    """
    reference, made_up = Reference(network.model, config), None
    if data is None and config.profile == "default":
        made_up = synthetic_inputs(network, _SYNTHETIC, config.seed)
    elif held_out is None and data is not None:
        held_out = HeldOut(network, data, loss, config.calibration_images, config.seed)
    if budget is not None and budget.accuracy is not None and not held_out.tells_accuracy:
        raise ValueError(
            "max_accuracy_drop needs data with labels, (x, y), of a model with one output of "
            "classes. Received: others; give max_loss_increase instead"
        )
    seen = None if held_out is None else held_out.seen
    data = made_up if held_out is None else held_out.data
    analysis = analyze.run(network, data, config, loss, progress, reference, seen)
    if made_up is not None:
        target = f"{analysis.target}; no data: images made up from the batch norms"
        analysis = dataclasses.replace(analysis, target=target)
    lasting = isinstance(config.runtime, str)  # of an object nobody knows what it is another day
    times = LayerTimes.of_this_machine() if lasting else None
    return Search(network, analysis, reference, held_out, previous, refit, times)
