"""Saved analyses that are damaged, of another model, newer or not there are refused in words."""

import json

import keras
import pytest

from espace_tf.config import EspaceConfig
from espace_tf.records.analysis import Analysis
from espace_tf.records.plan import Plan


def change(text, **fields):
    return json.dumps({**json.loads(text), **fields})


@pytest.mark.parametrize(
    "damage_json, damage_arrays, words",
    [
        (lambda text: text[: len(text) // 2], None, "corrupt or truncated"),
        (lambda text: "", None, "corrupt or truncated"),
        (lambda text: "[1, 2]", None, "corrupt or truncated"),
        (lambda text: text.replace("drawn", "drown"), None, "corrupt: its content"),
        (lambda text: change(text, version=99), None, "newer espace_tf.*format 99"),
        (lambda text: change(text, version="new"), None, "corrupt or truncated"),
        (lambda text: change(text, format="a plan"), None, "must hold an analysis.*'a plan'"),
        (lambda text: change(text, body=3), None, "corrupt: its content"),
        (None, lambda content: content[:-100], "npz is corrupt or truncated"),
        (None, lambda content: b"x" + content[1:], "npz is corrupt or truncated"),
    ],
)
def test_damaged_files_are_refused_in_words(tmp_path, damage_json, damage_arrays, words):
    path, arrays = tmp_path / "a.json", tmp_path / "a.json.npz"
    small_analysis().save(path)
    if damage_json:
        path.write_text(damage_json(path.read_text()))
    else:
        arrays.write_bytes(damage_arrays(arrays.read_bytes()))
    with pytest.raises(ValueError, match=words):
        Analysis.load(path)


def small_analysis():
    return Analysis(fingerprint="abc", config=EspaceConfig(), sites={}, target="drawn labels")


def test_files_of_another_model_or_missing_ones(tmp_path):
    small_analysis().save(tmp_path / "a.json")
    with pytest.raises(ValueError, match="belongs to another model.*abc"):
        Analysis.load(tmp_path / "a.json", model=keras.Sequential())
    (tmp_path / "a.json.npz").unlink()
    with pytest.raises(FileNotFoundError, match="a.json.npz"):
        Analysis.load(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match="none.json"):
        Analysis.load(tmp_path / "none.json")


def test_a_plan_and_an_analysis_taken_for_each_other(tmp_path):
    small_analysis().save(tmp_path / "a.json")
    Plan().save(tmp_path / "p.json")
    with pytest.raises(ValueError, match="p.json must hold an analysis .*; read it with Plan.load"):
        Analysis.load(tmp_path / "p.json")
    with pytest.raises(ValueError, match="a.json is no plan.*; read it with Analysis.load"):
        Plan.load(tmp_path / "a.json")
