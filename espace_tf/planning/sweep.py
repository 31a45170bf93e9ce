"""sweep(): one analysis, several speeds, and what each of them costs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from espace_tf.checks import check_speedup
from espace_tf.config import EspaceConfig
from espace_tf.objectives.judge import Judge
from espace_tf.planning import request
from espace_tf.planning.prepared import prepared
from espace_tf.progress import ANALYSIS, shown
from espace_tf.records.plan import Plan


@dataclass(frozen=True, kw_only=True)
class SweepRow:
    """One model of a sweep.

    Attributes:
        asked: the speed that was asked for; 1 of the given model.
        measured: the given model's time over this one's.
        damage: the predicted increase of the loss (see `LayerPlan`), all layers together, or
            without data the errors of the weights; None if no layer has one.
        accuracy: share of validation images whose largest output is their class; None if not known
            or if the outputs are no classes.
        loss: mean over the validation images; None if not known.
        model: the Keras model, with its `espace_plan` unless it is the given one.
    """

    asked: float
    measured: float
    damage: float | None = None
    accuracy: float | None = None
    loss: float | None = None
    model: Any = field(default=None, repr=False)


def sweep(
    model: Any,
    data: Any = None,
    *,
    speedups: Sequence[float],
    validation_data: Any = None,
    config: EspaceConfig | None = None,
    loss: Any = None,
    verbose: int = 1,
) -> list[SweepRow]:
    """Compresses a model to several speeds from one analysis: the curve to choose a speed from.

    The analysis takes most of the time of `compress` and does not depend on the speed, so that a
    further speed costs a plan and its measurements. A function of its own, rather than `compress`
    with a list: what comes out are rows to compare, and the type of what `compress` returns does
    not depend on an argument.

    Args:
        model, data, config, loss, verbose: as for `compress`.
        speedups: one or more different speeds above 1.
        validation_data: labelled images to judge the models on, in the forms of data; None: the
            predicted damage alone tells them apart. Nothing is trained: `fine_tune` the models
            that you mean to use, which gains most where most was lost.

    Returns:
        First the given model at speed 1, then one row per speed in the order given. For a drawing
        give them to `report` as sweep.

    Raises:
        TypeError, ValueError: as `compress`; also validation data without labels.

    Warns:
        UnreachableSpeedWarning: as `compress`, once for every speed that was missed.

    Example:
        >>> rows = sweep(model, train, speedups=(2, 3), validation_data=test)
        >>> report(rows[2].model, "report.html", sweep=rows)
        PosixPath('report.html')
    """
    speedups = _checked_speedups(speedups)
    network, config = request.checked(model, data, config, verbose)
    judge = None
    if validation_data is not None:
        judge = Judge(model, validation_data, loss, name="validation_data")
    with shown(verbose, ANALYSIS) as progress:
        search = prepared(network, data, config, loss, progress)
    rows = [given(model, **_judged(judge, model))]
    for speedup in speedups:
        small = search.at_speed(speedup)
        small.espace_analysis = search.analysis
        request.warn_if_off(small.espace_plan, config)
        rows.append(row(small, **_judged(judge, small)))
    if verbose:
        from rich.console import Console

        Console().print(table(rows))
    return rows


def given(model: Any, *, accuracy: float | None = None, loss: float | None = None) -> SweepRow:
    """The row of the model that nothing was done to."""
    return SweepRow(asked=1.0, measured=1.0, damage=0.0, accuracy=accuracy, loss=loss, model=model)


def row(
    small: Any,
    *,
    measured: float | None = None,
    accuracy: float | None = None,
    loss: float | None = None,
) -> SweepRow:
    """The row of a model that `compress` made for some speed.

    Args:
        small: the model.
        measured: its speed; None: as `compress` measured it.
        accuracy, loss: as in a SweepRow.
    """
    made: Plan = small.espace_plan
    damages = [layer.damage for layer in made.layers.values()]
    known = [damage for damage in damages if damage is not None]
    return SweepRow(
        asked=made.speedup,
        measured=made.measured_speedup if measured is None else measured,
        damage=float(sum(known)) if known or not damages else None,
        accuracy=accuracy,
        loss=loss,
        model=small,
    )


def table(rows: Sequence[SweepRow]) -> Any:
    """The rows as a `rich.table.Table`."""
    from rich.table import Table

    grid = Table(title="Speeds")
    columns = {
        "asked": "times faster, asked",
        "measured": "measured",
        "damage": "predicted loss increase",
        "accuracy": "accuracy",
        "loss": "loss",
    }
    for title in columns.values():
        grid.add_column(title, justify="right")
    for each in rows:
        values = (getattr(each, name) for name in columns)
        grid.add_row(*("-" if value is None else f"{value:.4g}" for value in values))
    return grid


def _checked_speedups(speedups: Any) -> list[float]:
    if isinstance(speedups, str) or not isinstance(speedups, Sequence | np.ndarray):
        raise TypeError(f"speedups must be a list of numbers above 1. Received: {speedups!r}")
    speedups = list(speedups)
    for speedup in speedups:
        check_speedup(speedup)
    if not speedups or len(set(speedups)) < len(speedups):
        raise ValueError(f"speedups must be one or more different ones. Received: {speedups}")
    return [float(speedup) for speedup in speedups]


def _judged(judge: Judge | None, model: Any) -> dict[str, float | None]:
    found = {} if judge is None else judge(model)
    return {name: found.get(name) for name in ("accuracy", "loss")}
