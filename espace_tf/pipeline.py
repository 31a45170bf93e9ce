"""compress(): a faster model in one call; compress_in_stages(): with training in between."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from espace_tf.analysis.held_out import HeldOut
from espace_tf.checks import check_count, check_speedup, warn
from espace_tf.config import EspaceConfig
from espace_tf.data.arrays import describe
from espace_tf.data.batches import batches, named_inputs
from espace_tf.data.forms import understood
from espace_tf.kept import Kept
from espace_tf.network import graph
from espace_tf.network.network import Network
from espace_tf.planning.budget import Budget
from espace_tf.planning.planner import UnreachableSpeedWarning
from espace_tf.planning.prepared import prepared
from espace_tf.planning.request import checked, goal, warn_if_off
from espace_tf.planning.search import Search
from espace_tf.progress import ANALYSIS, shown
from espace_tf.race import winner
from espace_tf.reconstruction.reconstruct import Reconstruction
from espace_tf.records.analysis import Analysis
from espace_tf.records.plan import Plan
from espace_tf.reports.tables import summary_table
from espace_tf.rewriting.apply import densify
from espace_tf.training.arguments import check_options, checked_optimizer
from espace_tf.training.fine_tune import fine_tune
from espace_tf.training.run_identity import described, weights_hash
from espace_tf.training.steps.step import assign


def compress(
    model: Any,
    data: Any = None,
    *,
    speedup: float | None = None,
    max_loss_increase: float | None = None,
    max_accuracy_drop: float | None = None,
    min_agreement: float | None = None,
    config: EspaceConfig | None = None,
    loss: Any = None,
    verbose: int = 1,
) -> Any:
    """A faster copy of a trained model: as fast as asked for, or as fast as it can be without harm.

    Analyses the model, plans, applies the plan and measures both whole networks in turns, each as
    `strip` makes it for deployment: batch norms that are not folded take their time in both, and
    would hide what was gained; and a compressed Keras 3 model runs in fused graphs only once it is
    stripped.

    With `speedup` the plan of least predicted loss is made. If the speed is off, the predicted
    times are corrected by what was measured and the plan is made anew, up to config.rounds times.
    Without it the loss is the budget: the fastest network is looked for whose loss on images that
    the statistics did not see grows by no more than max_loss_increase (max_accuracy_drop and
    min_agreement likewise). Either way no layer gives
    accuracy for time that is not worth it, and what is returned was measured once more, longer; it
    is the model unchanged if nothing is faster. With data it is then drawn to the given network's
    answers on the images that the statistics saw, without labels, for about half as long as these
    took: `reconstruct` does more. `fine_tune`, on all the data, brings most of what is still lost
    back.

    Times of layers are kept for the next call on this machine: see `espace_tf.timing.layer_times`.

    Args:
        model: a trained Keras 3 or tf_keras model; it is not changed. A subclassed one of Keras 3
            must have been called; it comes back as a Functional one.
        data: a tf.data.Dataset of batches, (x, y) or x, a keras.utils.PyDataset, or a function that
            begins a pass over such batches; or arrays. A few hundred training images are enough, a
            thousand are better: up to 512 of them are held out to compare answers on.
            None: inputs made up from the batch norms, or else the weights alone, decide, which is
            worse, and the summary says so.
        speedup: time before over time after, stripped, on config.runtime, above 1. None: the loss
            decides, or without data 1.5 is taken, with a warning. In the faithful profile None
            means ranks by energy and no masks.
        max_loss_increase: how much the mean loss per image may grow on held-out images: in nats for
            classes, where it also bounds the divergence from the given model's answers; relative
            squared change for other outputs. None: .02, no visible loss, if nothing else is given.
        max_accuracy_drop: how much the share of right answers may fall, with one standard error on
            top; .01 is one point. Needs labels of classes. Small budgets need many images.
        min_agreement: the share of answers that must stay the given model's, without labels: of
            classes the largest score, of other values the cosine; .99 lets one in a hundred change.
        config: every other knob; None: EspaceConfig().
        loss: what the model was trained with; None: the compiled loss, else inferred.
        verbose: 0 silent; 1, or 2 as in `fine_tune`, one display of progress with the time left,
            and a table of all layers.

    Returns:
        The new model, of the same library, with `espace_plan` (the Plan, with what was measured and
        compared; `apply` of it gives the model before `reconstruct`) and `espace_analysis` (the
        Analysis, for `report`; delete it to free its memory).

    Raises:
        TypeError: an argument of another type.
        ValueError: an argument that makes no sense, weights that are not finite, or a model without
            a convolution that may be touched.
        ImportError: config.runtime is not installed.

    Warns:
        UnreachableSpeedWarning: the measured speed is more than config.tolerance below the asked
            one, or it costs more than the budget allows, which wins; the message has both numbers.
            Or nothing makes the model faster, and a copy of it as it is is returned; the message
            says why.
        EspaceWarning: many answers have changed; the model is faster than was asked for; neither
            data nor a speed were given; the machine was too busy to be measured.

    Example:
        >>> small = compress(model, (images, labels), speedup=2)
        >>> history = fine_tune(small, (images, labels), teacher=model)
    """
    network, config = checked(model, data, config, verbose)
    limits = max_loss_increase, max_accuracy_drop, min_agreement
    speedup, budget = goal(data, speedup, *limits, config.profile)
    held_out, work = None, None
    if data is not None:
        held_out = HeldOut(network, data, loss, config.calibration_images, config.seed)
        if config.reconstruct and config.profile == "default":
            work = Reconstruction(network.model, held_out.images, loss, config.seed)
    refit = None if work is None else work.refit
    with shown(verbose) as progress:
        search = prepared(
            network, data, config, loss, progress, held_out=held_out, budget=budget, refit=refit
        )
        with progress("plans and their speeds", config.rounds + 2) as search.advance:
            small = _found(search, speedup, budget)
            search.analysis.release()
        if work is not None:
            seconds = work.affordable(config.reconstruct, held_out.seen)
            with progress("reconstruction", work.steps(seconds)) as advance:
                _train(small, work, held_out, budget, seconds, advance)
    small.espace_analysis = search.analysis
    if verbose:
        _print_summary(small.espace_plan, search.analysis)
    warn_if_off(small.espace_plan, config)
    return small


def _found(search: Search, speedup: float | None, budget: Budget | None) -> Any:
    """The network that was asked for; of a speed and a budget, the budget wins."""
    if budget is None:
        return search.at_speed(speedup)
    if speedup is None:
        return search.within(budget)
    asked = search.at_speed(speedup)
    made = asked.espace_plan
    if made.comparison is None or budget.spent(made.comparison) <= 1:
        return asked
    small = search.within(budget)
    found = small.espace_plan
    instead = "the model as it is"
    if found.layers:
        instead = f"{found.measured_speedup:.2f} times faster ({found.comparison})"
    warn(
        f"speedup {speedup:.4g} was asked for; at {made.measured_speedup:.2f} the network loses "
        f"more than {budget} ({made.comparison}). What is returned is {instead}",
        UnreachableSpeedWarning,
    )
    return small


def _train(
    small: Any,
    work: Reconstruction,
    held_out: HeldOut,
    budget: Budget | None,
    seconds: float,
    advance: Callable[[int], None],
) -> None:
    """The second half of `reconstruct`; undone if more is lost than before, or than may be."""
    made = small.espace_plan
    if made.comparison is None:
        return
    before = [weight.numpy() for weight in small.weights]
    work.train(small, seconds, advance)
    compared = held_out.compare(small)
    worse = compared.loss_increase > made.comparison.loss_increase
    if worse or (budget is not None and budget.spent(compared) > 1):
        assign(small.weights, before)
    else:
        small.espace_plan = dataclasses.replace(made, comparison=compared)


def compress_in_stages(
    model: Any,
    data: Any,
    *,
    speedup: float,
    stages: int = 2,
    epochs: int = 1,
    race: int = 0,
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

    With config.cache_dir a call that was killed goes on when it is repeated, unless its data is a
    dataset that is shuffled.

    Args:
        model, data, config, loss: as for `compress`; data is trained on too.
        verbose: 0 silent; 1 as for `compress`, with progress bars of training; 2 the same with one
            line an epoch.
        speedup: of the last stage.
        stages: how many, at least 1.
        epochs: of training after each stage, at least 1.
        race: 2 to 4 of the last stage's plans run against each other: as planned, ranks only, masks
            counting 3 times what is predicted of them, other orders of the pairs. Each is trained
            for an epoch, the half that loses least on held-out images for another, until one is
            left. 0: no race.
        **training: further arguments of `fine_tune`, such as validation_data, optimizer, schedule.

    Returns:
        The model of the last stage, as from `compress`, and one History per stage.

    Raises:
        TypeError, ValueError: as `compress`; also, before any work, a training argument that
            `fine_tune` does not know, or of a type or range that it refuses.

    Example:
        >>> small, histories = compress_in_stages(model, (images, labels), speedup=4, stages=2)
    """
    data = understood(data, named_inputs(model))
    network, config = checked(model, data, config, verbose)
    check_speedup(speedup)
    check_count(stages, "stages")
    check_count(epochs, "epochs")
    _check_training(model, data, training)
    if race:
        check_count(race, "race", least=2, most=4)
    small, previous, histories = None, None, []
    held_out = HeldOut(network, data, loss, config.calibration_images, config.seed)
    options = {"teacher": model, "loss": loss, "seed": config.seed, "verbose": verbose, **training}
    call = speedup, stages, epochs, race, config, described([loss, training])
    key = describe(data), describe(training.get("validation_data"))
    key += network.fingerprint, weights_hash(model)
    everything = Kept.of_call(config.cache_dir, *key, *call)
    for stage in range(1, stages + 1):
        kept = everything.inside(f"stage-{stage}")
        if small is not None:
            network, previous = Network.read(densify(model, small)), small.espace_plan
        with shown(verbose, ANALYSIS) as progress:
            search = prepared(network, data, config, loss, progress, held_out, previous)
        target = speedup ** (stage / stages)
        if race and stage == stages:

            def train(racer: Any, folder: Any) -> Any:
                quiet = {**options, "verbose": 0, "checkpoint_dir": folder}
                return fine_tune(racer, data, epochs=1, **quiet)

            small = winner(search, target, race, train, kept, verbose)
        else:
            small = kept.network(search, lambda: search.at_speed(target))  # noqa: B023 (called now)
        small.espace_analysis = search.analysis
        search.analysis.release()
        if verbose:
            _print_summary(small.espace_plan, search.analysis)
        folder = kept.training("training")
        histories.append(fine_tune(small, data, epochs=epochs, checkpoint_dir=folder, **options))
        # What is trained answers otherwise, and has seen the images that were held out.
        small.espace_plan = dataclasses.replace(small.espace_plan, comparison=None)
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
