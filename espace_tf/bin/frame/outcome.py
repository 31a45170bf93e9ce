"""What a run of `compress` found of networks, before and after."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def guesses(found: Mapping[str, float], model: Any, images: int) -> bool:
    """Whether a model's accuracy is no better than that of guessing, which three deviations of
    chance on so many images would explain.
    """
    classes = model.outputs[0].shape[-1]
    if "accuracy" not in found or not classes or classes < 2:
        return False
    chance = 1 / classes
    return found["accuracy"] <= chance + 3 * np.sqrt(chance * (1 - chance) / images)


def sizes(
    rows: Sequence[Any], models: Mapping[str, Any], judged: Mapping[str, Mapping[str, float]]
) -> dict[str, dict[str, Any]]:
    """What is known of each model, by its name.

    Args:
        rows: what `benchmark` found.
        models: Keras models by the rows' names.
        judged: by the same names, from `Judging`; of none of them, if nothing judges.
    """
    return {
        row.name: {
            "milliseconds": row.milliseconds,
            "macs": row.macs,
            "parameters": row.parameters,
            "weight_bytes": sum(weight.nbytes for weight in models[row.name].get_weights()),
            "accuracy": None,
            **judged.get(row.name, {}),
        }
        for row in rows
    }
