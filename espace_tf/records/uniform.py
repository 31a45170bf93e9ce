"""What Plan.uniform does to one convolution: one rank ratio and one mask for all, without data."""

import math

from espace_tf.config import EspaceConfig
from espace_tf.numerics import masks
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.site import Site, no_mask

DATA_FREE = tuple(name for name in masks.BY_LAYER if name != "impact")


def uniform_layer(site: Site, rank_ratio: float | None, keep: float, mask: str) -> LayerPlan | str:
    """What is done to a convolution, or why it is left alone; the arguments are Plan.uniform's."""
    if site.skip:
        return site.skip
    rank, masked, reasons = None, {}, []
    if rank_ratio is not None and site.kind == "conv" and math.prod(site.kernel_size) > 1:
        # A hair less before rounding up: 0.1 * 30 is 3.0000000000000004 in binary.
        rank = math.ceil(rank_ratio * site.full_rank() * (1 - 1e-12))
    elif rank_ratio is not None:
        reasons.append(f"a {site.kind} kernel of size {site.kernel_size} is not decomposed")
    if keep < 1 and (reason := no_mask(site, EspaceConfig().min_map)):
        reasons.append(reason)
    elif keep < 1:
        size = site.output_sizes[0]
        masked = {"positions": masks.kept(mask, size, keep), "family": mask, "output_size": size}
    note = "; ".join(reasons) or None
    if rank is None and not masked:
        return note or "rank_ratio is None and keep is 1: nothing was asked for"
    return LayerPlan(rank=rank, note=note, **masked)
