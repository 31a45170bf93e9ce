"""What options lose: probes scale predictions, and what a whole plan loses scales all of a kind."""

import types

import pytest

from espace_tf.analysis import damages
from espace_tf.analysis.result_cache import ResultCache
from espace_tf.records.option import Option

# Loss per predicted error, by layer, of its ranks and of its masks.
RANKS = {"a": 3.0, "b": 5.0, "c": 4.0}
MASKS = {"a": 0.02, "b": 0.03, "c": 0.02}


class Loss:
    """A network in which losses of ranks add up; those of masks do before they are squared."""

    def __init__(self, coherent=True):
        self._power = 2 if coherent else 1

    def alone(self, changes):
        return [self.damage(change) for change in changes]

    def damage(self, *changes):
        power = self._power
        ranks = sum(RANKS[path] * error for path, kind, error in changes if kind == "rank")
        masks = [MASKS[path] * error for path, kind, error in changes if kind == "mask"]
        return ranks + sum(loss ** (1 / power) for loss in masks) ** power


def network(monkeypatch):
    """Three layers, each as it is, with three masks, or with two ranks."""
    name = types.SimpleNamespace
    sites = {}
    for path in RANKS:
        options = [Option(ms=1.0)]
        options += [Option(family="rows", keep=k, ms=k + 0.02) for k in (0.75, 0.5, 0.25)]
        options += [Option(rank=r, ms=r / 10, error=0.1 / r) for r in (6, 3)]
        fields = {"site": name(path=path), "options": tuple(options), "dense_ms": 1.0}
        sites[path] = name(**fields, rank_probes=(), mask_probes=(), release=lambda: None)
    monkeypatch.setattr(damages, "_rank_change", lambda s, o: (s.site.path, "rank", o.error))
    monkeypatch.setattr(damages, "_mask_change", lambda s, o: (s.site.path, "mask", 1 - o.keep))
    monkeypatch.setattr(damages, "_mask_error", lambda _, o: 1 - o.keep if o.family else 0.0)
    return sites


def calibrated(monkeypatch, what_if):
    sites, done = network(monkeypatch), []
    damages.calibrate(sites, lambda: what_if, ResultCache(None, ""), done.append)
    assert done == [1, 1, 1]
    return sites


def test_one_probe_scales_all_ranks_and_another_all_masks(monkeypatch):
    sites = calibrated(monkeypatch, Loss(coherent=False))
    for path, site in sites.items():
        assert site.rank_probes == ((0.1 / 6, pytest.approx(RANKS[path] * 0.1 / 6)),)
        assert site.mask_probes == ((0.5, pytest.approx(MASKS[path] * 0.5)),)
        masks = [MASKS[path] * error for error in (0.25, 0.5, 0.75)]
        expected = [0.0, *masks, RANKS[path] * 0.1 / 6, RANKS[path] * 0.1 / 3]
        assert [option.damage for option in site.options] == pytest.approx(expected)


def test_masks_that_blur_alike_count_for_what_they_lose_together(monkeypatch):
    sites = calibrated(monkeypatch, Loss())
    # A third of the time: first three masks at keep .25, which lose nearly three times their sum.
    losses = [0.75 * loss for loss in MASKS.values()]
    expected = sum(loss**0.5 for loss in losses) ** 2 / sum(losses)
    assert expected > 2.9
    for path, site in sites.items():
        found = [option.damage for option in site.options]
        assert found[3] / (MASKS[path] * 0.75) == pytest.approx(expected)
        assert found[4] == pytest.approx(RANKS[path] * 0.1 / 6)


def test_a_probe_with_next_to_no_error_says_nothing():
    probes = {"a": ((0.1, 0.3),), "b": ((0.2, 1.0),), "c": ((1e-9, 1e-3),), "d": (), "e": ((0, 1),)}
    found = damages._scales(probes)
    assert found == pytest.approx({"a": 3.0, "b": 5.0, "c": 4.0, "e": 4.0})
    assert damages._scales({"a": ((0.0, 1.0),)}) == {"a": 0.0}


def test_without_data_the_tail_and_the_share_that_is_skipped(monkeypatch):
    sites = network(monkeypatch)
    damages.guess(sites)
    found = [option.damage for option in sites["a"].options]
    assert found == pytest.approx([0, 0.25, 0.5, 0.75, 0.1 / 6, 0.1 / 3])
