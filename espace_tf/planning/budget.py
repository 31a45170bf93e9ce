"""Budget: what a compressed network may lose, and how much of that one has lost."""

from dataclasses import dataclass

from espace_tf.records.comparison import Comparison

# No visible loss: a perplexity of 1.02 times the former one, or a cosine of .99 with the former
# output.
DEFAULT_LOSS = 0.02
# What a first plan may lose for each unit of accuracy, and of agreement.
_LOSS_PER_ACCURACY, _LOSS_PER_CHANGE = 3.0, 1.0


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The most that may be lost on held-out images; all that are given hold.

    Args:
        loss: increase of the mean loss per image, see `Comparison`.
        accuracy: drop of the share of right answers, with one standard error on top.
        agreement: least share of answers that stay as they were, see `Comparison`.
    """

    loss: float | None = None
    accuracy: float | None = None
    agreement: float | None = None

    def spent(self, seen: Comparison) -> float:
        """What was lost over what may be: 1 is all of it.

        Example:
            >>> Budget(loss=0.02).spent(Comparison(images=9, loss_increase=0.01, agreement=1.0))
            0.5
        """
        shares = []
        if self.loss is not None:
            shares.append(seen.loss_increase / self.loss)
        if self.accuracy is not None:
            shares.append(seen.accuracy_drop / self.accuracy)
        if self.agreement is not None:
            shares.append((1 - seen.agreement) / (1 - self.agreement))
        return max(shares)

    @property
    def first_loss(self) -> float:
        """A loss per image that may go with it, to begin with where none is given."""
        if self.loss is not None:
            return self.loss
        guesses = []
        if self.accuracy is not None:
            guesses.append(_LOSS_PER_ACCURACY * self.accuracy)
        if self.agreement is not None:
            guesses.append(_LOSS_PER_CHANGE * (1 - self.agreement))
        return min(guesses)

    def __str__(self) -> str:
        known = {
            "max_loss_increase": self.loss,
            "max_accuracy_drop": self.accuracy,
            "min_agreement": self.agreement,
        }
        return ", ".join(f"{name}={value:g}" for name, value in known.items() if value is not None)
