"""The network that speeds are measured against, made ready once."""

import functools
from collections.abc import Callable
from typing import Any

from espace_tf.config import EspaceConfig
from espace_tf.deploy import comparison
from espace_tf.timing import measure, runtimes


class Reference:
    """The given network as it would be deployed: stripped, and traced once for all measurements.

    Args:
        model: a Keras model with inputs of known size.
        config: runtime, batch size and threads.

    Attributes:
        error: of the last speed that was measured, see `measure.Ratio`; None: none was.
    """

    def __init__(self, model: Any, config: EspaceConfig):
        self.model, self._config = model, config
        self.error: float | None = None
        self._last: tuple[Any, Callable[[], Any]] | None = None

    @functools.cached_property
    def stripped(self) -> Any:
        """The model as its runtime runs it, without fused graphs: it has no compressed layer."""
        return runtimes.find(self._config.runtime).form(self.model)

    @functools.cached_property
    def call(self) -> Callable[[], Any]:
        """A call of it on a batch of noise, to be timed."""
        return self._runner(self.stripped)

    def speedup(self, small: Any, **effort: float) -> measure.Ratio:
        """Its time over that of a compressed model, stripped as well; with arguments of `ratio`.

        The model that was timed last is kept as it was stripped: new weights take no other time.
        """
        if self._last is None or self._last[0] is not small:
            self._last = None  # two at once would take the memory of both
            self._last = small, self._runner(runtimes.find(self._config.runtime).form(small))
        found = measure.ratio(self.call, self._last[1], **effort)
        self.error = found.error
        return found

    def _runner(self, stripped: Any) -> Callable[[], Any]:
        arrays = comparison.noise(stripped, self._config.batch_size, self._config.input_size)
        return runtimes.runner(stripped, arrays, self._config.runtime, self._config.threads)[0]
