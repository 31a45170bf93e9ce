"""A race of plans of one speed: each network is trained shortly, the better half trains on.

Successive halving (Jamieson & Talwalkar, 2016): most of the training goes to what is likely to win.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from espace_tf.kept import Kept
from espace_tf.planning.contenders import FIRST, contenders
from espace_tf.planning.search import Search, choices

Train = Callable[[Any, Path | None], Any]


@dataclass
class Racer:
    """A network in a race: what makes its plan differ, and its held-out loss so far."""

    name: str
    model: Any
    loss: float = math.inf

    def __str__(self) -> str:
        speed = self.model.espace_plan.measured_speedup
        return f"{self.name}: {speed:.2f} times faster, held-out loss {self.loss:.4f}"


def winner(
    search: Search, speedup: float, count: int, train: Train, kept: Kept, verbose: int
) -> Any:
    """Of the networks of several plans of one speed the one that loses least after training.

    Args:
        search: of the network that is compressed.
        speedup: of all of them.
        count: how many plans, 2 to 4; see `contenders`. Equal ones run once.
        train: trains a model, with a folder to resume from or None, and returns the History of
            `fine_tune`, whose best_loss decides.
        kept: where networks and trainings are kept.
        verbose: above 0 a line a network and round is printed.
    """
    racers = _lined_up(search, speedup, count, kept)
    rounds = math.ceil(math.log2(len(racers)))
    for lap in range(1, rounds + 1):
        for racer in racers:
            folder = kept.inside(racer.name).training(f"round-{lap}")
            racer.loss = train(racer.model, folder).best_loss
            if verbose:
                print(f"Race, round {lap} of {rounds}: {racer}", flush=True)
        racers = sorted(racers, key=lambda each: each.loss)[: math.ceil(len(racers) / 2)]
    return racers[0].model


def _lined_up(search: Search, speedup: float, count: int, kept: Kept) -> list[Racer]:
    """The networks of different plans that reach the speed."""
    first = kept.inside(FIRST).network(search, lambda: search.at_speed(speedup))
    racers, seen = [Racer(FIRST, first)], {choices(first.espace_plan)}
    reached = min(speedup, first.espace_plan.measured_speedup)
    least = (1 - search.analysis.config.tolerance) * reached
    for name, analysis in contenders(search.analysis, first.espace_plan, count).items():
        if name == FIRST:
            continue
        other = search.with_analysis(analysis)
        model = kept.inside(name).network(search, lambda other=other: other.at_speed(speedup))
        made = model.espace_plan
        # A slower network loses less, and would win for that.
        if made.measured_speedup >= least and choices(made) not in seen:
            seen.add(choices(made))
            racers.append(Racer(name, model))
    return racers
