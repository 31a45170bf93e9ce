"""Comparison: how far a compressed network's answers are from the given one's."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from espace_tf.checks import check_count, check_number


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was seen on images that the statistics of a plan did not come from.

    Args:
        images: how many.
        loss_increase: of the mean loss per image, in nats for classes; where labels do not say, the
            Kullback-Leibler divergence from the given network's answers (0 if they are the same),
            of other outputs the relative squared change; the larger one where labels do say.
        agreement: the share of equal answers, the least of all outputs: of classes the same largest
            score, of labels the same side, of other values their mean cosine.
        accuracy_before, accuracy_after: share of right answers, where labels tell.

    Example:
        >>> str(Comparison(images=100, loss_increase=0.012, agreement=0.97))
        'on 100 held-out images: loss +0.012, agreement .970'
    """

    images: int
    loss_increase: float
    agreement: float
    accuracy_before: float | None = None
    accuracy_after: float | None = None

    def __post_init__(self):
        check_count(self.images, "images")
        check_number(self.loss_increase, "loss_increase", -math.inf)
        for name in ("agreement", "accuracy_before", "accuracy_after"):
            if name == "agreement" or getattr(self, name) is not None:
                check_number(getattr(self, name), name, -1.0, 1.0)

    def __str__(self) -> str:
        words = f"on {self.images} held-out images: loss {self.loss_increase:+.3g}"
        words += f", agreement {_share(self.agreement)}"
        if self.accuracy_before is not None:
            words += f", accuracy {_share(self.accuracy_before)} -> {_share(self.accuracy_after)}"
        return words

    @property
    def accuracy_drop(self) -> float | None:
        """What was lost, with one standard error on top; None where labels do not tell.

        Of n images only those answered otherwise can change the accuracy: its standard error is at
        most the root of their number over n.
        """
        if self.accuracy_before is None:
            return None
        changed = max(1.0 - self.agreement, 0.0)
        return self.accuracy_before - self.accuracy_after + (changed / self.images) ** 0.5

    def to_json(self) -> dict[str, Any]:
        """Its fields as plain JSON values."""
        return dataclasses.asdict(self)


def _share(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")
