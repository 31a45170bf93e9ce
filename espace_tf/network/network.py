"""A model read once: what analysis, planning and rewriting know of it."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from espace_tf.network import graph
from espace_tf.network.copies import cloning
from espace_tf.network.copies.borrowed import compiled_like
from espace_tf.network.normal_form import normal
from espace_tf.network.sites import at_size, read_sites
from espace_tf.records.site import Site


@dataclass(frozen=True, eq=False)
class Network:
    """A Keras model with its layers and convolutions; made at the door and handed through.

    Attributes:
        model: a Keras 3 or tf_keras model in its `normal` form; nothing here changes it.
        layers: by path, as `graph.layers` gives them.
        sites: every convolution in order of execution.
        fingerprint: of the architecture.

    Example:
        >>> network = Network.read(keras.applications.MobileNet(weights=None))
        >>> network.sites[0].path
        'conv1'
    """

    model: Any
    layers: Mapping[str, Any]
    sites: tuple[Site, ...]
    fingerprint: str

    @classmethod
    def read(cls, model: Any) -> "Network":
        """The description of a model.

        Raises:
            TypeError: not a Keras model.
            ValueError: the model has not been built.
            RuntimeError: eager execution is off.
        """
        graph.check_eager(model)
        model = normal(model)
        layers = graph.layers(model)
        return cls(model, layers, tuple(read_sites(model)), graph.fingerprint(model))

    def copied(self, size: tuple[int, int] | None = None) -> "Network":
        """The same of a private copy of the model, weights included.

        Nobody else calls the copy, so that its layers may be watched and replaced while it runs: a
        prediction of the given model in another thread never sees that.

        Args:
            size: (H, W) of inputs whose size the model leaves open, at which its sites have theirs.

        Raises:
            ValueError: a layer that cannot be copied, or a size that the model does not take.
        """
        model = compiled_like(cloning.private_copy(self.model), self.model)
        sites = at_size(model, self.sites, size)
        return dataclasses.replace(self, model=model, layers=graph.layers(model), sites=sites)
