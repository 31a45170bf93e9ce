import numpy as np
import pytest

from espace_tf.keras_layers.texts import read_positions, read_words, write_positions, write_words


def test_positions_survive_the_text():
    rng = np.random.default_rng(0)
    for size in (None, (5, 7), (8, 8), (1, 1)):
        count = 35 if size is None else size[0] * size[1]
        positions = np.flatnonzero(rng.random(count) < 0.3).astype(np.int32)
        positions = positions if len(positions) else np.zeros(1, np.int32)
        again, map_size = read_positions(write_positions(positions, size))
        np.testing.assert_array_equal(again, positions)
        assert map_size == size and again.dtype == np.int32
    assert read_positions(write_positions(None, (5, 7))) == (None, None)


def test_a_mask_of_another_map_is_refused():
    written = write_positions(np.array([1]), (2, 4))
    with pytest.raises(ValueError, match="another output size: 1 bytes where 9 positions take 2"):
        read_positions({**written, "map_size": [3, 3]})


def test_words_survive_the_text():
    words = np.random.default_rng(0).integers(-(2**31), 2**31, 1000).astype(np.int32)
    np.testing.assert_array_equal(read_words(write_words(words)), words)
    np.testing.assert_array_equal(read_words(words.tolist()), words)


@pytest.mark.parametrize(
    ("program", "error", "words"),
    [
        ("nonsense", ValueError, "must be integers or their text. Received: 'nonsense'"),
        ([], ValueError, r"must be flat and not empty. Received: shape \(0,\)"),
        ([[1]], ValueError, r"must be flat and not empty. Received: shape \(1, 1\)"),
        ([0.5], TypeError, "must be integers. Received: dtype float64"),
    ],
)
def test_what_is_no_program_is_refused(program, error, words):
    with pytest.raises(error, match=words):
        read_words(program)
