"""compress(): a faster model in one call; compress_in_stages(): with training in between."""

import inspect
from collections.abc import Mapping
from typing import Any

from espace_tf.analysis.analyze import analyze
from espace_tf.checks import check_count, check_speedup
from espace_tf.config import EspaceConfig
from espace_tf.data.batches import batches, named_inputs
from espace_tf.network import graph
from espace_tf.planning.request import checked, warn_if_off
from espace_tf.planning.search import nearest
from espace_tf.records.analysis import Analysis
from espace_tf.records.plan import Plan
from espace_tf.reports.tables import summary_table
from espace_tf.rewriting.apply import densify
from espace_tf.training.arguments import check_options, checked_optimizer
from espace_tf.training.fine_tune import fine_tune


def compress(
    model: Any,
    data: Any = None,
    *,
    speedup: float | None = None,
    config: EspaceConfig | None = None,
    loss: Any = None,
    verbose: int = 1,
) -> Any:
    """A copy of a trained model that runs `speedup` times faster at the least predicted loss.

    Analyses the model, plans, applies the plan and measures both whole networks in turns, each as
    `strip` makes it for deployment: batch norms that are not folded take their time in both, and
    would hide what was gained; and a compressed Keras 3 model runs in fused graphs only once it is
    stripped. If the speed is off, the predicted times are corrected by what was
    measured and the plan is made anew, up to config.rounds times. The model nearest to the asked
    speed is measured once more, longer, and returned; unchanged if that is no faster than the given
    one. It is not trained: `fine_tune` brings most of the lost accuracy back.

    Times of layers are kept for the next call on this machine: see `espace_tf.timing.layer_times`.

    Args:
        model: a trained Keras 3 or tf_keras model; it is not changed.
        data: a tf.data.Dataset of batches, (x, y) or x; or arrays; a few hundred training images
            are enough. None: the weights alone decide, which is worse, and the summary says so.
        speedup: time before over time after, stripped, on config.runtime, above 1. Must be given,
            except in the faithful profile, where None means ranks by energy and no masks.
        config: every other knob; None: EspaceConfig().
        loss: what the model was trained with; None: the compiled loss, else inferred.
        verbose: 0 silent; 1, or 2 as in `fine_tune`, progress and a table of all layers.

    Returns:
        The new model, of the same library, with `espace_plan` (the Plan, with what was measured)
        and `espace_analysis` (the Analysis, for `report`; delete it to free its memory).

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument that makes no sense, weights that are not finite, or a model without
            a convolution that may be touched.
        ImportError: config.runtime is not installed.

    Warns:
        UnreachableSpeedWarning: the measured speed is further than config.tolerance from the asked
            one; the message has both numbers. Or nothing makes the model faster, and a copy of it
            as it is is returned; the message says why.

    Example:
        >>> small = compress(model, (images, labels), speedup=2)
        >>> history = fine_tune(small, (images, labels), teacher=model)
    """
    config = checked(model, data, speedup, config, verbose)
    analysis = analyze(model, data, config=config, loss=loss, verbose=verbose)
    small = nearest(model, analysis, speedup)
    small.espace_analysis = analysis
    if verbose:
        _print_summary(small.espace_plan, analysis)
    warn_if_off(small.espace_plan, config)
    return small


def compress_in_stages(
    model: Any,
    data: Any,
    *,
    speedup: float,
    stages: int = 2,
    epochs: int = 1,
    config: EspaceConfig | None = None,
    loss: Any = None,
    verbose: int = 1,
    **training: Any,
) -> tuple[Any, list[Any]]:
    """Compresses and trains in turns: each stage starts from what the one before has learned.

    The speed grows geometrically, speedup^(k / stages) after stage k. From the second stage on the
    pairs are multiplied out to whole kernels first, which are then analysed and planned anew; masks
    only shrink, each lies inside the one before. Every stage ends with `epochs` of `fine_tune`,
    with the given model as teacher (most is recovered in about one epoch a stage).

    Args:
        model, data, config, loss: as for `compress`; data is trained on too.
        verbose: 0 silent; 1 as for `compress`, with progress bars of training; 2 the same with one
            line an epoch.
        speedup: of the last stage.
        stages: how many, at least 1.
        epochs: of training after each stage, at least 1.
        **training: further arguments of `fine_tune`, such as validation_data, optimizer, schedule.

    Returns:
        The model of the last stage, as from `compress`, and one History per stage.

    Raises:
        TypeError, ValueError: as `compress`; also, before any work, a training argument that
            `fine_tune` does not know, or of a type or range that it refuses.

    Example:
        >>> small, histories = compress_in_stages(model, (images, labels), speedup=4, stages=2)
    """
    config = checked(model, data, speedup, config, verbose)
    check_speedup(speedup)
    check_count(stages, "stages")
    check_count(epochs, "epochs")
    _check_training(model, data, training)
    current, small, histories = model, None, []
    for stage in range(1, stages + 1):
        if small is not None:
            current = densify(model, small)
        analysis = analyze(current, data, config=config, loss=loss, verbose=verbose)
        previous = None if small is None else small.espace_plan
        small = nearest(current, analysis, speedup ** (stage / stages), previous)
        small.espace_analysis = analysis
        if verbose:
            _print_summary(small.espace_plan, analysis)
        arguments = {"loss": loss, "seed": config.seed, "verbose": verbose, **training}
        histories.append(fine_tune(small, data, teacher=model, epochs=epochs, **arguments))
    warn_if_off(small.espace_plan, config)
    return small, histories


def _check_training(model: Any, data: Any, training: Mapping[str, Any]) -> None:
    if data is None:
        raise ValueError("data must be given: every stage trains on it. Received: None")
    known = set(inspect.signature(fine_tune).parameters)
    own = {"model", "data", "teacher", "epochs", "checkpoint_dir"}
    unknown = sorted(set(training) - (known - own))
    if unknown:
        raise TypeError(
            f"training arguments must be some of {', '.join(sorted(known - own))}. "
            f"Received: {', '.join(unknown)}"
        )
    check_options(**training)
    checked_optimizer(graph.library(model), training.get("optimizer"))
    if training.get("validation_data") is not None:
        options = {"inputs": named_inputs(model), "name": "validation_data"}
        _, judged = next(batches(training["validation_data"], 1, 1, **options))
        _, labels = next(batches(data, 1, 1))
        if judged is None and labels is not None:
            raise ValueError(
                "validation_data must hold labels, (x, y), as data does. Received: inputs only"
            )


def _print_summary(made: Plan, analysis: Analysis) -> None:
    from rich.console import Console

    Console(highlight=False).print(summary_table(made, analysis))
