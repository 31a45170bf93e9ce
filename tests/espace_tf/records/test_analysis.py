"""Analyses in files."""

import dataclasses

import numpy as np
import pytest
from analysed import CONFIG, hurry, network, run, same, samples

from espace_tf.analysis import analyze
from espace_tf.numerics.factors import reconstruct
from espace_tf.records.analysis import Analysis


@pytest.fixture
def quick(monkeypatch):
    hurry(monkeypatch)


@pytest.mark.parametrize("data", [samples(), None], ids=["data", "no data"])
def test_round_trip(tmp_path, quick, data):
    model = network()
    config = dataclasses.replace(
        CONFIG, include=["first", "second"], exclude="nothing", cache_dir=tmp_path / "cache"
    )
    found = run(model, data, config)
    found.save(tmp_path / "a.json")
    loaded = Analysis.load(tmp_path / "a.json", model=model)
    same(found, loaded, 1e-6)
    assert loaded.config == dataclasses.replace(config, cache_dir=str(tmp_path / "cache"))
    for path, site in found.sites.items():
        twin, option = loaded.sites[path], site.options[1]
        ours, theirs = (each.factors(option.rank, option.order) for each in (site, twin))
        ours, theirs = (reconstruct(f, option.order, site.site.groups) for f in (ours, theirs))
        np.testing.assert_allclose(theirs, ours, atol=1e-3)
        for option in site.options:
            if option.family:
                where = (option.family, option.keep)
                np.testing.assert_array_equal(twin.positions(*where), site.positions(*where))


def test_decompositions_that_take_longest_last_as_far_as_there_is_room(quick, monkeypatch):
    def kept(room):
        monkeypatch.setattr(analyze, "_DECOMPOSITIONS", room)
        found = run(network(), samples(), CONFIG)
        orders = {path: site.options[1].order for path, site in found.sites.items()}
        made = {path: site.decomposition(orders[path]) for path, site in found.sites.items()}
        for site in found.sites.values():
            site.release()
        again = {path: site.decomposition(orders[path]) for path, site in found.sites.items()}
        for path in made:
            np.testing.assert_array_equal(again[path].errors, made[path].errors)
        lasting = {path for path in made if again[path] is made[path]}
        found.release()
        assert all(site.decomposition(orders[p]) is not again[p] for p, site in found.sites.items())
        return lasting, {path: site.decomposition_bytes for path, site in found.sites.items()}

    lasting, sizes = kept(np.inf)
    assert lasting == set(sizes)
    largest = max(sizes, key=sizes.get)
    assert kept(sizes[largest])[0] == {largest}
    assert kept(0)[0] == set()


def test_a_configuration_with_functions_is_saved(tmp_path, quick):
    config = dataclasses.replace(CONFIG, include=lambda path: path == "first")
    run(network(), None, config).save(tmp_path / "a.json")
    assert list(Analysis.load(tmp_path / "a.json").sites) == ["first"]
