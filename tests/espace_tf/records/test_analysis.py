"""Analyses in files."""

import dataclasses

import numpy as np
import pytest
from analysed import CONFIG, hurry, network, run, same, samples

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


def test_a_configuration_with_functions_is_saved(tmp_path, quick):
    config = dataclasses.replace(CONFIG, include=lambda path: path == "first")
    run(network(), None, config).save(tmp_path / "a.json")
    assert list(Analysis.load(tmp_path / "a.json").sites) == ["first"]
