"""The seconds of each phase of `compress`, as `benchmarks.compress_time` tells them."""

import io
import time
from typing import Any

from espace_tf.progress import SHARES

_BEFORE = "before"  # reading, copying, and the answers of the given network
_PASSES = ("input statistics", "loss gradients")
COLUMNS = (
    *("network", "images", "asked", "seconds", "passes", _BEFORE, *SHARES),
    *("peak MB", "landed", "agreement", "top-1"),
)


class Clock(io.TextIOBase):
    """Standard output that notes when `compress` says that a phase begins."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, list[float]] = {}
        self._phase, self._since = _BEFORE, self._now()

    def write(self, text: str) -> int:
        """Ends a phase where a line names the next one."""
        for phase in SHARES:
            if f"% {phase}" in text:
                self.end()
                self._phase = phase
        return len(text)

    def end(self) -> None:
        """Adds what has passed to the phase that runs."""
        now = self._now()
        former = self.seconds.get(self._phase, [0.0, 0.0])
        passed = [a + b - c for a, b, c in zip(former, now, self._since, strict=True)]
        self.seconds[self._phase], self._since = passed, now

    @staticmethod
    def _now() -> list[float]:
        return [time.perf_counter(), time.process_time()]


def row(name: str, found: dict[str, Any]) -> list[str]:
    """One line of the table."""
    phases = found["phases"]
    seconds = sum(wall for wall, _ in phases.values())
    passes = sum(phases[each][0] for each in _PASSES)
    parts = [phases.get(each, (0.0, 0.0)) for each in (_BEFORE, *SHARES)]
    return [
        name,
        str(found["images"]),
        f"{found['asked']:g}",
        f"{seconds:.0f}",
        f"{seconds / passes:.1f}",
        *(f"{wall:.0f} ({cpu:.0f})" for wall, cpu in parts),
        str(found["megabytes"]),
        f"{found['landed']:.2f}",
        f"{found['agreement']:.3f}",
        " -> ".join(f"{each:.4f}" for each in found["top1"]),
    ]
