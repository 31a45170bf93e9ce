"""Times of layers outlive the process, and no file of any content is an error."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

from espace_tf.analysis import analyze as analyzing
from espace_tf.analysis import offers
from espace_tf.analysis.analyze import analyze
from espace_tf.config import EspaceConfig, EspaceWarning
from espace_tf.timing import layer_times, measure
from espace_tf.timing.layer_times import VARIABLE, LayerTimes


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def only_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def test_what_was_measured_is_known_to_the_next(folder):
    first = LayerTimes.of_this_machine()
    assert first.get("layer") is None and first.get("layer", "rank 4") is None
    first.add("layer", 2.0, {"rank 4": 0.25})
    again = LayerTimes.of_this_machine()
    assert again.get("layer") == 2.0 and again.get("layer", "rank 4") == 0.5
    assert again.get("layer", "rank 8") is None
    content = json.loads(only_file(folder).read_text())
    assert content["where"]["cores"] == layer_times.environment()["cores"] >= 1
    only_file(folder).unlink()
    assert LayerTimes.of_this_machine().get("layer") is None


def test_a_share_belongs_to_the_first_time_of_its_layer(folder):
    known = LayerTimes.of_this_machine()
    known.add("layer", 2.0, {"a": 0.5})
    # The machine is twice as slow now: the option still takes a quarter of the layer.
    known.add("layer", 4.0, {"a": 0.9, "b": 0.25})
    assert known.get("layer") == 2.0
    assert known.get("layer", "a") == 1.0 and known.get("layer", "b") == 0.5


def test_two_at_once_add_to_one_file(folder):
    one, other = LayerTimes.of_this_machine(), LayerTimes.of_this_machine()
    one.add("layer", 2.0, {"a": 0.5})
    other.add("layer", 3.0, {"b": 0.5})
    other.add("another", 1.0, {})
    found = LayerTimes.of_this_machine()
    assert found.get("another") == 1.0
    # Whichever time of the layer is kept, both shares are.
    assert found.get("layer", "a") == found.get("layer", "b") == found.get("layer") / 2
    assert [path.suffix for path in folder.iterdir()] == [".json"]


def test_processes_at_once_leave_a_whole_file(folder):
    program = (
        "import sys; from pathlib import Path; from espace_tf.timing import layer_times\n"
        "layer_times.environment = lambda: {}\n"
        "for i in range(40):\n"
        "    layer_times.LayerTimes(Path(sys.argv[1])).add(f'{sys.argv[2]} {i}', 1.0, {'a': 0.5})\n"
    )
    folder.mkdir()
    path = folder / "times.json"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path), "theirs"],
        cwd=Path(__file__).parents[3],
        stderr=subprocess.PIPE,
        text=True,
    )
    index = 0
    while process.poll() is None:  # Until the other one is done: warnings are errors here.
        LayerTimes(path).add(f"ours {index}", 1.0, {"a": 0.5})
        index += 1
        time.sleep(0.02)
    _, error = process.communicate()
    assert process.returncode == 0 and "Warning" not in error, error
    known = LayerTimes(path)
    assert known.get("theirs 39", "a") == 0.5 or known.get(f"ours {index - 1}", "a") == 0.5
    assert only_file(folder) == path


BAD = {
    "empty": b"",
    "cut": b'{"format": "espace_tf times 1", "layers": {"a": {"ms": 1.',
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "list": b"[1, 2]",
    "foreign": b'{"format": "other", "layers": {}}',
    "no layers": b'{"format": "espace_tf times 1"}',
    "nan": b'{"format": "espace_tf times 1", "layers": {"a": {"ms": NaN, "shares": {}}}}',
    "negative": b'{"format": "espace_tf times 1", "layers": {"a": {"ms": -1.0, "shares": {}}}}',
    "text": b'{"format": "espace_tf times 1", "layers": {"a": {"ms": "1", "shares": {}}}}',
    "flat": b'{"format": "espace_tf times 1", "layers": {"a": 1.0}}',
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_what_holds_no_times_is_ignored_and_written_anew(content, tmp_path):
    path = tmp_path / "times.json"
    path.write_bytes(content)
    with pytest.warns(EspaceWarning, match="does not hold measured times") as caught:
        known = LayerTimes(path)
        known.add("layer", 2.0, {})
    assert len(caught) == 1
    assert LayerTimes(path).get("layer") == 2.0 and LayerTimes(path).get("a") is None


def test_where_the_files_are(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for value in ("", "off", "OFF "):
        monkeypatch.setenv(VARIABLE, value)
        assert layer_times.cache_folder() is None
        LayerTimes.of_this_machine().add("layer", 1.0, {})
    monkeypatch.setenv(VARIABLE, "here")
    assert layer_times.cache_folder() == Path("here")
    monkeypatch.setenv(VARIABLE, "~/times")
    assert layer_times.cache_folder() == tmp_path / "times"
    monkeypatch.delenv(VARIABLE)
    assert layer_times.cache_folder() == tmp_path / ".cache" / "espace_tf"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert layer_times.cache_folder() == tmp_path / ".cache" / "espace_tf"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert layer_times.cache_folder() == tmp_path / "xdg" / "espace_tf"
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("place", ["/proc/self/none", "file/cache"])
def test_a_place_that_cannot_be_written_keeps_nothing(place, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / place))
    known = LayerTimes.of_this_machine()
    known.add("layer", 2.0, {"a": 0.5})
    assert known.get("layer", "a") == 1.0
    assert LayerTimes.of_this_machine().get("layer") is None


def test_a_folder_in_the_place_of_the_file_keeps_nothing(tmp_path):
    (tmp_path / "times.json" / "inside").mkdir(parents=True)
    known = LayerTimes(tmp_path / "times.json")
    known.add("layer", 2.0, {"a": 0.5})
    assert known.get("layer", "a") == 1.0
    assert [path.name for path in tmp_path.rglob("*")] == ["times.json", "inside"]


@pytest.mark.parametrize("value", ["off", "elsewhere", "file/cache"])
def test_an_analysis_needs_no_place_to_keep_times(value, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(VARIABLE, value)
    monkeypatch.setattr(offers, "_SECONDS", 0.0)
    config = EspaceConfig(keeps=(0.5,), mask_families=("rows",), include="first")
    found = analyze(network(), None, config=config, verbose=0)
    assert all(option.ms > 0 for option in found.sites["first"].options)
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == ({"file", "elsewhere"} if value == "elsewhere" else {"file"})


@pytest.mark.parametrize("name", ["_cpu", "cores", "code_digest"])
def test_other_machines_and_binaries_have_files_of_their_own(name, folder, monkeypatch):
    LayerTimes.of_this_machine().add("layer", 2.0, {})
    monkeypatch.setattr(layer_times, name, lambda *_: "another")
    assert LayerTimes.of_this_machine().get("layer") is None


def network() -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Conv2D(8, 3, name=name) for name in ("first", "second")]
    return keras.Sequential([keras.Input((10, 10, 4)), *layers])


def test_a_second_analysis_measures_no_layer(folder, monkeypatch):
    asked = []
    add = LayerTimes.add

    def counted(self, *arguments):
        asked.append(arguments)
        add(self, *arguments)

    monkeypatch.setattr(LayerTimes, "add", counted)
    monkeypatch.setattr(offers, "_SECONDS", 0.0)
    config = EspaceConfig(keeps=(0.5,), mask_families=("rows",))
    model = network()
    first = analyze(model, None, config=config, verbose=0)
    assert len(asked) == 3, "two layers and the network"
    again = analyze(model, None, config=config, verbose=0)
    assert len(asked) == 3
    for path, site in first.sites.items():
        found = [option.ms for option in again.sites[path].options]
        np.testing.assert_allclose(found, [option.ms for option in site.options], rtol=1e-12)
    for change in ({"batch_size": 2}, {"runtime": "litert"}):
        analyze(model, None, config=EspaceConfig(include="first", **change), verbose=0)
    assert len(asked) == 7


def test_layers_share_the_seconds_and_leave_what_they_do_not_need(folder, monkeypatch):
    now, given = [0.0], []

    def timed(site, known, seconds, *_):
        given.append(seconds)
        now[0] += 10.0
        return {"options": np.array('[{"ms": 1.0, "macs": 1}]')}

    monkeypatch.setattr(analyzing, "_TIMING_SECONDS", 120.0)
    monkeypatch.setattr(analyzing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(analyzing, "_timed", timed)
    monkeypatch.setattr(measure, "alternate", lambda calls, **__: [1.0] * len(calls))
    monkeypatch.setattr(analyzing.steps, "network_times", lambda *_: [1.0, 1.0, 0.5])
    analyze(network(), None, verbose=0)
    assert given == [60.0, 110.0]
