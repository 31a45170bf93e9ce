"""Plans and analyses on disk: whole after any crash, refused in words when damaged."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from espace_tf.config import EspaceConfig
from espace_tf.records import saving
from espace_tf.records.analysis import Analysis, SiteAnalysis
from espace_tf.records.layer_plan import LayerPlan
from espace_tf.records.option import Option
from espace_tf.records.plan import Plan
from espace_tf.records.site import Site

ROOT = Path(__file__).parents[3]


def plan(position=0):
    return Plan(layers={"conv": LayerPlan(positions=[position])}, speedup=2.0)


def analysis(value=0):
    sizes = {"input_sizes": ((2, 2),), "output_sizes": ((2, 2),)}
    site = Site(path="conv", kind="conv", kernel_size=(1, 1), in_channels=2, filters=3, **sizes)
    kernel = np.full((1, 1, 2, 3), value, np.float32)
    known = {"conv": SiteAnalysis(site=site, kernel=kernel, options=(Option(ms=1.5),))}
    return Analysis(fingerprint="abc", config=EspaceConfig(), sites=known, target="drawn labels")


def state(found):
    if isinstance(found, Plan):
        return found.layers["conv"].positions.tolist()
    return found.sites["conv"].kernel[0, 0, 0, 0]


BOTH = pytest.mark.parametrize(
    "made, kind", [(plan, Plan), (analysis, Analysis)], ids=["plan", "analysis"]
)


def arrays_of(path):
    return path.with_name(json.loads(path.read_text())["arrays"]["file"])


def files(folder):
    return sorted(os.listdir(folder))


@BOTH
def test_saving_over_it_leaves_one_pair(tmp_path, made, kind):
    path = tmp_path / "a.json"
    for value in (1, 2, 2):
        made(value).save(path)
        assert state(kind.load(path)) == state(made(value))
        assert files(tmp_path) == sorted(["a.json", arrays_of(path).name])
        assert arrays_of(path).name.startswith("a.")


@BOTH
def test_a_copy_of_the_json_keeps_its_arrays(tmp_path, made, kind):
    path = tmp_path / "a.json"
    made(1).save(path)
    shutil.copy(path, tmp_path / "old.json")
    edited = json.loads(path.read_text()) | {"note": "sorted and without line breaks"}
    (tmp_path / "b.txt").write_text("\ufeff" + json.dumps(edited, sort_keys=True))
    (tmp_path / "folder").mkdir()
    for value in (2, 3):
        made(value).save(path)
    assert state(kind.load(tmp_path / "old.json")) == state(made(1))
    assert state(kind.load(path)) == state(made(3))
    assert len(list(tmp_path.glob("*.npz"))) == 2
    (tmp_path / "b.txt").unlink()
    made(4).save(tmp_path / "old.json")
    assert len(list(tmp_path.glob("*.npz"))) == 2, "nobody names the first arrays any more"


@BOTH
def test_arrays_that_are_not_what_the_json_says_stay(tmp_path, made, kind):
    path = tmp_path / "a.json"
    made(1).save(path)
    (tmp_path / "mine.npz").write_text("mine")
    document = json.loads(path.read_text())
    document["arrays"]["file"] = "mine.npz"
    path.write_text(json.dumps(document))
    made(2).save(path)
    assert (tmp_path / "mine.npz").read_text() == "mine"


@BOTH
@pytest.mark.parametrize("existing", [False, True])
@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_failed_save_leaves_what_was_there(tmp_path, monkeypatch, made, kind, fails_at, existing):
    path = tmp_path / "a.json"
    if existing:
        made(1).save(path)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    calls, replace = [], os.replace

    def failing(source, target):
        calls.append(target)
        if len(calls) == fails_at:
            raise PermissionError("read-only")
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(PermissionError):
        made(2).save(path)
    monkeypatch.undo()
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


# Kills, or disturbs, a save at each of the steps that Python reports to an audit hook.
CRASHES = """
    import itertools, os, sys
    from pathlib import Path

    sys.modules["tensorflow"] = None
    sys.path[:0] = [{root!r}, {tests!r}]
    import test_saving as here

    folder = Path({folder!r})
    path = folder / "a.json"

    def save(value, left, kills):
        def hook(event, arguments):
            nonlocal left
            if event == "open" or event.startswith("os."):
                left -= 1
                if left == -1:
                    os._exit(9) if kills else None
                    raise OSError("disturbed")

        sys.addaudithook(hook)
        try:
            made(value).save(path)
        finally:
            os._exit(0 if left >= 0 else 1)

    kinds = ((here.plan, here.Plan), (here.analysis, here.Analysis))
    for (made, kind), existing, kills in itertools.product(kinds, (False, True), (False, True)):
        ends, status = [], None
        while status != 0:
            for name in os.listdir(folder):
                (folder / name).unlink()
            if existing:
                made(1).save(path)
            child = os.fork() or save(2, len(ends), kills)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            ends.append(here.state(kind.load(path)) if path.exists() else None)
        first = here.state(made(1)) if existing else None
        assert all(end in (first, here.state(made(2))) for end in ends), ends
        assert first in ends and ends[-1] == here.state(made(2)) and len(ends) > 8, ends
"""


def test_a_crash_at_any_step_leaves_a_whole_pair(tmp_path):
    known = {"root": str(ROOT), "tests": str(Path(__file__).parent), "folder": str(tmp_path)}
    script = textwrap.dedent(CRASHES).format(**known)
    command = [sys.executable, "-c", script]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr


@BOTH
def test_truncated_at_any_place_is_refused(tmp_path, made, kind):
    path = tmp_path / "a.json"
    made(1).save(path)
    for victim in (path, arrays_of(path)):
        whole = victim.read_bytes()
        for size in np.linspace(0, len(whole) - 1, 25).astype(int):
            victim.write_bytes(whole[:size])
            with pytest.raises(ValueError, match="corrupt or truncated") as error:
                kind.load(path)
            assert str(victim) in str(error.value)
        content = bytearray(whole)
        content[len(content) // 2] ^= 1
        if victim != path:
            victim.write_bytes(content)
            with pytest.raises(ValueError, match="checksum"):
                kind.load(path)
        victim.write_bytes(whole)
    assert state(kind.load(path)) == state(made(1))


@BOTH
@pytest.mark.parametrize(
    "change, words",
    [
        ({"version": saving.VERSION + 1}, f"newer espace_tf.*version is {saving.VERSION + 1}"),
        ({"version": "1"}, "version must be a number"),
        ({"format": "notes"}, "a.json must hold an espace_tf .* Received: the format 'notes'"),
        ({"format": [3]}, "Received: the format .3."),
        ({"arrays": None}, "names no array file"),
        ({"arrays": {"file": "a.npz", "sha256": 3}}, "names no array file"),
    ],
)
def test_other_documents_are_refused(tmp_path, made, kind, change, words):
    path = tmp_path / "a.json"
    made(1).save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=words):
        kind.load(path)
    path.write_text("[1, 2]")
    with pytest.raises(ValueError, match="Received: the format None"):
        kind.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"config": 3},
        {"config": {"profile": "other"}},
        {"config": {"colour": "red"}},
        {"sites": [{}]},
        {"sites": 3},
        {"sites": [3]},
    ],
)
def test_an_analysis_edited_into_nonsense_is_refused(tmp_path, change):
    path = tmp_path / "a.json"
    analysis().save(path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=r"a\.json is corrupt, or was edited wrongly"):
        Analysis.load(path)


@BOTH
def test_missing_files_are_named(tmp_path, made, kind):
    path = tmp_path / "a.json"
    with pytest.raises(FileNotFoundError, match=rf"no {made.__name__} at .*a\.json"):
        kind.load(path)
    made(1).save(path)
    arrays_of(path).unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.[0-9a-f]{12}\.npz.* is missing"):
        kind.load(path)


def test_taken_for_each_other_or_for_another_model(tmp_path):
    analysis().save(tmp_path / "a.json")
    Plan().save(tmp_path / "p.json")
    with pytest.raises(ValueError, match="p.json must hold .*; read it with Plan.load"):
        Analysis.load(tmp_path / "p.json")
    with pytest.raises(ValueError, match="a.json must hold .*; read it with Analysis.load"):
        Plan.load(tmp_path / "a.json")
    import keras  # not above: the crashes are played through without TensorFlow

    with pytest.raises(ValueError, match="belongs to another model.*abc"):
        Analysis.load(tmp_path / "a.json", model=keras.Sequential())


def test_numbers_of_numpy_are_saved(tmp_path):
    found = analysis()
    found.images, found.model_ms, found.fused_ms = np.int64(3), np.float32(1.5), np.bool_(True)
    found.sites["conv"].options = (Option(ms=np.float64(2.5), rank=np.int32(1), measured=np.True_),)
    found.save(tmp_path / "a.json")
    loaded = Analysis.load(tmp_path / "a.json")
    assert (loaded.images, loaded.model_ms, loaded.fused_ms) == (3, 1.5, True)
    assert loaded.sites["conv"].options == (Option(ms=2.5, rank=1, measured=True),)


@pytest.mark.parametrize(
    "content", [b"notes", b"{}", b'{"format": "espace_tf analysis"}', b"\x00\xff", b"[1, 2]"]
)
def test_a_foreign_file_is_not_replaced(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"holds an espace_tf plan, .*plan\.json.*another path"):
        plan().save(path)
    assert files(tmp_path) == ["plan.json"] and path.read_bytes() == content


@pytest.mark.parametrize("content", [b"", b'{\n "format": "espace_tf plan", "ver'])
def test_one_of_ours_even_damaged_is_replaced(tmp_path, content):
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    plan(3).save(path)
    assert state(Plan.load(path)) == [3]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_stays_empty(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        plan().save(tmp_path / "plan.json")
    tmp_path.chmod(0o700)
    assert os.listdir(tmp_path) == []
