"""The best weights of a training run, those that it began with included."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from espace_tf.training.steps.step import assign


class Best:
    """Weights with their loss on held-out images.

    Args:
        weights: of the model, the variables.

    Attributes:
        epoch: after which the best weights stood in the model; 0: as it came.
        loss: their loss.
        first_loss: the loss of epoch 0.
        arrays: their values.
    """

    def __init__(self, weights: Sequence[Any]):
        self.weights = list(weights)
        self.epoch, self.loss, self.first_loss = 0, np.inf, np.inf
        self.arrays: list[np.ndarray] = []

    def note(self, epoch: int, loss: float) -> None:
        """Remembers the weights that stand in the model if they are the best so far."""
        loss = loss if np.isfinite(loss) else np.inf
        if epoch == 0:
            self.first_loss = loss
        if loss < self.loss or not self.arrays:
            self.epoch, self.loss = epoch, loss
            self.arrays = [weight.numpy() for weight in self.weights]

    def is_in_place(self) -> bool:
        """Whether the best weights stand in the model."""
        pairs = zip(self.weights, self.arrays, strict=True)
        return all(np.array_equal(weight.numpy(), array) for weight, array in pairs)

    def put_back(self) -> None:
        """Puts the best weights into the model."""
        assign(self.weights, self.arrays)

    @property
    def numbers(self) -> dict[str, float]:
        """All but the arrays, for a file."""
        return {"epoch": self.epoch, "loss": self.loss, "first_loss": self.first_loss}

    def restore(self, arrays: Sequence[np.ndarray], numbers: dict[str, float]) -> None:
        """What `arrays` and `numbers` gave, also after a way through a file."""
        self.arrays, self.first_loss = list(arrays), numbers["first_loss"]
        self.epoch, self.loss = numbers["epoch"], numbers["loss"]

    def __str__(self) -> str:
        when = f"of epoch {self.epoch}" if self.epoch else "from before training"
        return f"The weights {when} are kept: their loss on held-out images is {self.loss:.4g}"
