"""Pictures: one dot for every computed position, where it is; colours by impact."""

import numpy as np

from espace_tf.reports.pictures import DOT, NO_IMPACT, draw_dots, draw_map


def test_map_draws_one_dot_per_kept_position():
    positions = np.array([0, 5, 11])
    picture = draw_map(positions, (3, 4))
    cell = picture.shape[0] // 3
    assert picture.shape == (3 * cell, 4 * cell, 3)
    centres = picture[cell // 2 :: cell, cell // 2 :: cell]
    kept = (centres == DOT).all(-1)
    assert np.flatnonzero(kept).tolist() == positions.tolist()
    assert (centres[~kept] == NO_IMPACT).all()


def test_map_colours_follow_the_impact():
    impact = np.arange(12.0).reshape(3, 4) ** 5
    picture = draw_map(np.array([], int), (3, 4), impact)
    blue = picture[:: picture.shape[0] // 3, :: picture.shape[1] // 4, 2].astype(int).ravel()
    assert (np.diff(blue) < 0).all()


def test_dots_lie_on_nothing():
    positions = np.array([0, 5, 11])
    dots = draw_dots(positions, (3, 4))
    cell = dots.shape[0] // 3
    assert dots.shape == (3 * cell, 4 * cell, 4)
    centres = dots[cell // 2 :: cell, cell // 2 :: cell]
    assert np.flatnonzero((centres == (*DOT, 255)).all(-1)).tolist() == positions.tolist()
    assert np.flatnonzero(centres[..., 3]).tolist() == positions.tolist()
    assert (dots[::cell, ::cell] == 0).all(), "corners of cells show what lies below"
