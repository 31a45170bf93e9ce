"""How far training has faded from dense layers (0) to masked ones (1), as a function of the step.

Schedules are plain Python: they read a number and return one, so that callbacks, `fine_tune` and
hand-written loops can all assign the result to the variable that the layers read.
"""

from typing import Any

from espace_tf.checks import check_count, check_number


def checked_fade(value: Any, name: str = "schedule", where: str = "") -> float:
    """What a schedule gave, as a number in [0, 1].

    Args:
        value: a number, NumPy scalar, tensor or variable.
        name: what gave it, for errors.
        where: where it did, for errors.

    Raises:
        TypeError: no number.
        ValueError: outside [0, 1].
    """
    words = f"{name} must give a fade from 0 (dense) to 1 (masked). Received: {value!r}{where}"
    try:
        fade = float("" if isinstance(value, str | bytes) else value)
    except (TypeError, ValueError) as error:
        raise TypeError(words) from error
    if not 0.0 <= fade <= 1.0:
        raise ValueError(words)
    return fade


class Schedule:
    """What all schedules share: a call with a step gives the fade, a config makes an equal one.

    A schedule of one's own overrides `fade` and, when it has arguments, `get_config`.
    """

    def __call__(self, step: Any) -> float:
        """The fade in [0, 1] at optimizer step `step`.

        Args:
            step: the number of optimizer steps done: an integer, NumPy scalar, tensor or variable.

        Raises:
            TypeError: the schedule gave no number.
            ValueError: the schedule gave a number outside [0, 1].
        """
        step = int(step.numpy() if hasattr(step, "numpy") else step)
        return checked_fade(self.fade(step), type(self).__name__, f" at step {step}")

    def fade(self, step: int) -> float:
        """The fade at a step, a Python integer >= 0."""
        raise NotImplementedError(f"{type(self).__name__} must define fade(step)")

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal schedule."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "Schedule":
        """The schedule that `get_config` described."""
        return cls(**config)


class ConstantSchedule(Schedule):
    """Dense until `begin_step`, then one constant fade.

    Args:
        value: the fade from `begin_step` on, in [0, 1].
        begin_step: the first step with the fade, >= 0.

    Raises:
        TypeError, ValueError: an argument of another type or outside its range.

    Example:
        >>> schedule = ConstantSchedule(begin_step=10)
        >>> schedule(9), schedule(10)
        (0.0, 1.0)
    """

    def __init__(self, value: float = 1.0, *, begin_step: int = 0):
        self.value = check_number(value, "value", 0.0, 1.0)
        self.begin_step = check_count(begin_step, "begin_step", 0)

    def fade(self, step: int) -> float:
        """`value` from `begin_step` on, 0 before."""
        return self.value if step >= self.begin_step else 0.0

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal schedule."""
        return {"value": self.value, "begin_step": self.begin_step}


class PolynomialDecay(Schedule):
    """From `initial` to `final` by a polynomial, fast at first (Zhu and Gupta, arXiv:1710.01878).

    With p = (step - begin_step) / (end_step - begin_step) clipped to [0, 1],

        fade = final + (initial - final) * (1 - p) ** power,

    held constant for `frequency` steps at a time; from `end_step` on it is exactly `final`.

    Args:
        end_step: the step from which the fade is `final`, > begin_step.
        begin_step: the last step at which the fade is `initial`, >= 0.
        initial: the fade at the beginning, in [0, 1].
        final: the fade at the end, in [0, 1].
        power: the exponent, > 0; 1 is linear.
        frequency: the number of steps between two changes, >= 1.

    Raises:
        TypeError, ValueError: an argument of another type or outside its range.

    Example:
        >>> schedule = PolynomialDecay(end_step=100, power=1.0)
        >>> schedule(0), schedule(25), schedule(1000)
        (0.0, 0.25, 1.0)
    """

    def __init__(
        self,
        end_step: int,
        *,
        begin_step: int = 0,
        initial: float = 0.0,
        final: float = 1.0,
        power: float = 3.0,
        frequency: int = 1,
    ):
        self.begin_step = check_count(begin_step, "begin_step", 0)
        self.end_step = check_count(end_step, "end_step", self.begin_step + 1)
        self.initial = check_number(initial, "initial", 0.0, 1.0)
        self.final = check_number(final, "final", 0.0, 1.0)
        self.power = check_number(power, "power", 1e-6)
        self.frequency = check_count(frequency, "frequency")

    def fade(self, step: int) -> float:
        """The polynomial's value, see the class."""
        if step >= self.end_step:
            return self.final
        done = max(0, step - self.begin_step) // self.frequency * self.frequency
        remaining = 1.0 - done / (self.end_step - self.begin_step)
        return self.final + (self.initial - self.final) * remaining**self.power

    def get_config(self) -> dict[str, Any]:
        """The arguments that make an equal schedule."""
        names = ("end_step", "begin_step", "initial", "final", "power", "frequency")
        return {name: getattr(self, name) for name in names}
