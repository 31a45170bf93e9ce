"""The learning rate of the default optimizer: found by short runs, warmed up, annealed to 0."""

import math
from collections.abc import Callable
from typing import Any

RATES = (1e-3, 3e-4, 1e-4, 3e-5, 1e-5)


def annealed(rate: float, step: int, steps: int) -> float:
    """The learning rate at a step: a linear warm-up over a twentieth, then half a cosine to 0.

    Loshchilov and Hutter, arXiv:1608.03983.

    Args:
        rate: the highest.
        step: steps done.
        steps: of the whole run.

    Example:
        >>> [round(annealed(1.0, step, 40), 2) for step in (0, 1, 2, 21, 40)]
        [0.33, 0.67, 1.0, 0.5, 0.0]
    """
    warm = steps // 20
    if step < warm:
        return rate * (step + 1) / (warm + 1)
    done = min(1.0, (step - warm) / max(1, steps - warm))
    return rate * 0.5 * (1.0 + math.cos(math.pi * done))


def trial_steps(steps: int) -> int:
    """Steps of each short run: a fiftieth of the run's, 4 to 20."""
    return min(20, max(4, steps // 50))


def find(loss_after: Callable[[float], float]) -> float:
    """The largest of RATES whose short run does not raise the loss on held-out images.

    The smallest one if every run raises it.

    Args:
        loss_after: gives that loss after a short run from the start at a rate; 0: without steps.
    """
    bound = loss_after(0.0)
    return next((rate for rate in RATES[:-1] if loss_after(rate) <= bound), RATES[-1])


class Annealing:
    """Sets an optimizer's learning rate step by step, and nobody else may.

    Args:
        optimizer: of either library, with a number as its learning rate.
    """

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer
        self.settle()

    def settle(self) -> None:
        """Takes the learning rate that the optimizer has now for its own."""
        self._last = self._now()

    def assign(self, rate: float, step: int, steps: int) -> None:
        """Sets `annealed(rate, step, steps)`.

        Raises:
            ValueError: the learning rate was changed meanwhile.
        """
        if self._now() != self._last:
            raise ValueError(
                "callbacks must not set the learning rate of the default optimizer, which is found "
                "and annealed at every step. Received: one that set it to "
                f"{self._now():g}; give optimizer=, such as Adam(1e-4), to set it yourself"
            )
        self.optimizer.learning_rate = annealed(rate, step, steps)
        self.settle()

    def _now(self) -> float:
        return float(self.optimizer.learning_rate.numpy())
