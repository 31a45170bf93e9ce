"""Flags that must go together, of several commands."""

from espace_tf.bin import shared_flags


def training(*, needs_epochs: bool = False) -> None:
    """Raises ValueError for flags of training that do not go together."""
    if shared_flags.EPOCHS.value == 0 and needs_epochs:
        raise ValueError("--epochs must be at least 1. Received: 0")
    if shared_flags.OPTIMIZER.value == "auto":
        for flag in (shared_flags.RATE, shared_flags.DECAY):
            if flag.value is not None:
                raise ValueError(f"--{flag.name} needs a named --optimizer, such as adam")
    elif shared_flags.RATE.value is None:
        raise ValueError(f"--optimizer={shared_flags.OPTIMIZER.value} needs --learning_rate")
