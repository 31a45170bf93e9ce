"""Results are computed once, survive damage to their files, and never answer for one another."""

import numpy as np
import pytest

from espace_tf.analysis import result_cache
from espace_tf.analysis.result_cache import ResultCache


class Work:
    """Counts how often it is done."""

    def __init__(self, value=1.0):
        self.value, self.times = value, 0

    def __call__(self):
        self.times += 1
        return {"a|b": np.full(3, self.value), "text": np.array("äö")}


def test_a_finished_stage_is_not_computed_again(tmp_path):
    work = Work()
    for _ in range(3):
        found = ResultCache(tmp_path / "new" / "folder", "key").get("stage/one", work)
        np.testing.assert_array_equal(found["a|b"], np.ones(3))
        assert str(found["text"]) == "äö"
    assert work.times == 1


def test_without_a_folder_nothing_is_kept():
    cache, work = ResultCache(None, "key"), Work()
    cache.get("one", work)
    cache.get("one", work)
    assert work.times == 2


@pytest.mark.parametrize(
    "first, second",
    [(("key", "s"), ("other", "s")), (("key", "s"), ("key", "t")), (("k", "a/b"), ("k", "a_b"))],
)
def test_stages_and_keys_are_told_apart(tmp_path, first, second):
    ResultCache(tmp_path, first[0]).get(first[1], Work(1.0))
    found = ResultCache(tmp_path, second[0]).get(second[1], Work(2.0))
    np.testing.assert_array_equal(found["a|b"], np.full(3, 2.0))


def test_times_hold_where_they_were_found(tmp_path, monkeypatch):
    here, work = result_cache.environment(), Work()
    cache = ResultCache(tmp_path, "key")
    cache.get("one", work)
    for _ in range(2):
        cache.of_this_machine().get("one", work)
    assert work.times == 2
    for changed, times in (({"operator": "reference"}, 3), ({"cpu": "other"}, 4), ({}, 4)):
        monkeypatch.setattr(result_cache, "environment", lambda changed=changed: here | changed)
        cache.of_this_machine().get("one", work)
        cache.get("one", work)
        assert work.times == times
    monkeypatch.setattr(result_cache, "code_digest", lambda *folders: "another version")
    ResultCache(tmp_path, "key").get("one", work)
    assert work.times == 5


@pytest.mark.parametrize("damage", [lambda content: content[:-30], lambda content: b""])
def test_a_damaged_stage_is_computed_anew(tmp_path, damage):
    ResultCache(tmp_path, "key").get("one", Work())
    (path,) = tmp_path.rglob("*.npz")
    path.write_bytes(damage(path.read_bytes()))
    work = Work()
    for _ in range(2):
        ResultCache(tmp_path, "key").get("one", work)
    assert work.times == 1


def test_a_stage_that_fails_leaves_nothing(tmp_path):
    def fail():
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        ResultCache(tmp_path, "key").get("one", fail)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
