"""Checks of arguments: an error names the argument, what is allowed and what came."""

import importlib.util
import math
import sys
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

MOST_THREADS = 1024
MOST_SEED = 2**32 - 1  # what NumPy and Keras take


def check_choice(value: Any, name: str, allowed: Sequence[Any]) -> Any:
    """The one of those allowed that `value` is equal to; raises ValueError if it is none."""
    if not isinstance(value, str | Integral) or value not in allowed:
        raise ValueError(
            f"{name} must be one of {', '.join(map(str, allowed))}. Received: {value!r}"
        )
    return allowed[allowed.index(value)]


def check_count(value: Any, name: str, least: int = 1, most: int | None = None) -> int:
    """`value` as a Python integer.

    Raises:
        TypeError: no integer.
        ValueError: below `least`, or above `most` if that is given.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an integer. Received: {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}. Received: {value}")
    if most is not None and value > most:
        raise ValueError(f"{name} must be at most {most}. Received: {value}")
    return int(value)


def check_number(value: Any, name: str, low: float, high: float = math.inf) -> float:
    """`value` as a Python float; raises ValueError unless it is a finite number in [low, high]."""
    if not _is_finite(value):
        raise ValueError(f"{name} must be a finite number. Received: {value!r}")
    if not low <= value <= high:
        bounds = f"at least {low}" if high == math.inf else f"between {low} and {high}"
        raise ValueError(f"{name} must be {bounds}. Received: {value}")
    return float(value)


def _is_finite(value: Any) -> bool:
    """Whether a value is a number, no truth value, that a float can hold."""
    try:
        return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def check_text(value: Any, name: str) -> str:
    """`value`; raises TypeError unless it is a text."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a text. Received: {value!r}")
    return value


def check_threads(value: Any) -> int | None:
    """`value` as None or a Python integer; raises if no machine can start so many threads."""
    return None if value is None else check_count(value, "threads", most=MOST_THREADS)


def require(extra: str, *modules: str) -> None:
    """Raises ImportError, saying what to install, unless these optional modules are there."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise ImportError(
            f"{' and '.join(missing)} must be installed for this: pip install 'espace_tf[{extra}]'"
        )


def check_speedup(value: Any) -> None:
    """Raises ValueError unless `value` is a finite number above 1."""
    if not _is_finite(value) or value <= 1:
        raise ValueError(
            "speedup must be a finite number above 1, such as 2.0 for half the time. "
            f"Received: {value!r}"
        )


def warn(message: str, category: type[Warning]) -> None:
    """Warns with the line that called this library, which is the one that its user can change."""
    frames, frame = [], sys._getframe(1)
    while frame is not None:
        frames.append(frame.f_globals.get("__name__", "").partition(".")[0])
        frame = frame.f_back
    ours = [index for index, name in enumerate(frames) if name == __name__.partition(".")[0]]
    warnings.warn(message, category, stacklevel=max(ours, default=-1) + 3)
