"""A few random graphs through everything; `make fuzz-graphs` makes more of them."""

import keras
import pytest
from fuzz_graphs import failure
from random_graphs import MAKERS, graph_of

from espace_tf.network.layer_rules import RULES

SEED, GRAPHS, AT_ONCE = 7000, 40, 8


def test_graphs_are_made_of_all_known_layers():
    assert set(MAKERS) == set(RULES) - {"FusedGraph"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("first", range(SEED, SEED + GRAPHS, AT_ONCE))
def test_random_graphs_stay_what_they_are(first):
    for seed in range(first, first + AT_ONCE):
        graph = graph_of(seed)
        found = failure(graph, seed, tflite=seed == first)
        assert not found, f"seed {seed}: {found[0]}\n{graph.code()}"
    keras.utils.clear_session()
