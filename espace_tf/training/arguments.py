"""What `fine_tune` refuses before it looks at the model or the data."""

from collections.abc import Sequence
from numbers import Real
from typing import Any

from espace_tf.checks import MOST_SEED, check_choice, check_count, check_number

GRADUAL = "gradual"


def check_options(**options: Any) -> None:
    """Refuses what can be refused without the model or the data.

    Args:
        **options: any arguments of `fine_tune`.

    Raises:
        TypeError, ValueError: an argument of another kind, or outside its range.
    """
    for name, value in options.items():
        if name in _COUNTS:
            check_count(value, name, *_COUNTS[name])
        elif name in _NUMBERS:
            check_number(value, name, *_NUMBERS[name])
        elif name in _CHECKS:
            _CHECKS[name](value)


def _check_features(features: Any) -> None:
    if features is None or isinstance(features, str):
        return
    if not isinstance(features, Sequence) or not all(isinstance(f, str) for f in features):
        raise TypeError(
            f'features must be "auto", None or a list of layer paths. Received: {features!r}'
        )


def _check_schedule(schedule: Any) -> None:
    text = isinstance(schedule, str) and schedule == GRADUAL
    if not callable(schedule) and schedule is not None and not text:
        raise ValueError(
            f"schedule must be {GRADUAL!r}, None, or a function of the step, such as "
            f"espace_tf.schedules.PolynomialDecay(end_step=1000). Received: {schedule!r}"
        )


def _check_callbacks(callbacks: Any) -> None:
    known = isinstance(callbacks, Sequence) and not isinstance(callbacks, str)
    if not known or not all(hasattr(each, "on_train_begin") for each in callbacks):
        raise TypeError(f"callbacks must be a list of Keras callbacks. Received: {callbacks!r}")
    for each in callbacks:
        if any(base.__name__ == "BackupAndRestore" for base in type(each).__mro__):
            raise ValueError(
                "callbacks must not hold BackupAndRestore, which cannot put a fine-tuning back: "
                f"give checkpoint_dir={getattr(each, 'backup_dir', 'a folder')!r} instead"
            )


_COUNTS = {  # least and most
    **dict.fromkeys(("epochs", "batch_size", "checkpoint_every"), (1,)),
    "batch_norm_batches": (0,),
    "seed": (0, MOST_SEED),
}
_NUMBERS = {
    **dict.fromkeys(("distillation_weight", "feature_weight"), (0.0,)),
    "temperature": (1e-3, 1e3),
}
_CHECKS = {
    "features": _check_features,
    "schedule": _check_schedule,
    "callbacks": _check_callbacks,
    "verbose": lambda value: check_choice(value, "verbose", (0, 1, 2)),
    "keep_best": lambda value: _check_flag(value, "keep_best"),
    "train_frozen": lambda value: _check_flag(value, "train_frozen"),
}


def _check_flag(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False. Received: {value!r}")


def checked_optimizer(library, optimizer):
    """The optimizer as an object, None for the default.

    Raises:
        ValueError: none of the library's, or one with a learning rate below 0 or not finite.
    """
    if optimizer is None:
        return None
    try:
        found = library.optimizers.get(optimizer)
    except (ValueError, TypeError):
        found = None
    if not isinstance(found, library.optimizers.Optimizer):
        raise ValueError(
            f"optimizer must be one of {library.__name__}.optimizers or its name, as the model is "
            f"of {library.__name__}. Received: {optimizer!r}"
        )
    found = getattr(found, "inner_optimizer", found)  # the trainer scales the loss
    rate = found.get_config()["learning_rate"]
    if isinstance(rate, Real):  # a schedule is described by a dictionary
        check_number(float(rate), "optimizer's learning_rate", 0.0)
    return found
