"""The comparison of nearest neighbours and weighted sums against plain NumPy."""

import keras
import numpy as np
import pytest

import espace_tf
from benchmarks import neighbours
from espace_tf.kernels.index_map import nearest_spread

SEED = 11


@pytest.mark.parametrize("count", [1, 3, 50])
def test_weights_are_least_squares_over_the_nearest_computed_positions(count):
    random = np.random.default_rng(SEED)
    size, samples = (4, 5), 40
    y = random.normal(size=(20, samples))
    positions = np.sort(random.choice(20, 7, replace=False))
    shown = positions[nearest_spread(size, positions)]
    weights = neighbours.weighted_rows(y, shown, size[1], count)
    for row in range(20):
        used = np.flatnonzero(weights[row])
        if row in positions:
            assert used.tolist() == [row] and weights[row, row] == 1
            continue
        far = [(p // 5 - row // 5) ** 2 + (p % 5 - row % 5) ** 2 for p in positions]
        near = positions[np.argsort(far, kind="stable")[:count]]
        assert set(used) <= set(near), f"seed {SEED}, row {row}"
        best = np.linalg.lstsq(y[near].T, y[row], rcond=None)[0]
        assert np.abs(weights[row, near] - best).max() < 0.01, f"seed {SEED}, row {row}"


def smooth_images(count: int) -> np.ndarray:
    """Images that change slowly: a neighbour says much of a pixel, several say more."""
    random = np.random.default_rng(SEED)
    coarse = random.normal(size=(count, 5, 5, 1)).astype(np.float32)
    return keras.layers.Resizing(16, 16)(coarse).numpy()


@pytest.fixture
def network():
    keras.utils.set_random_seed(SEED)
    return keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            keras.layers.Conv2D(8, 3, padding="same", activation="relu", name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4),
        ]
    )


def test_the_nearest_neighbour_loses_what_the_plan_loses(network):
    plan = espace_tf.Plan.uniform(network, rank_ratio=None, keep=0.3)
    compared = neighbours.Comparison(network, plan, smooth_images(32))
    nearest, weighted = compared.matrices("conv", 4)
    assert compared.loss({"conv": nearest}) == pytest.approx(
        compared.loss_of_plan(masks=True), rel=1e-3
    )
    assert compared.loss_of_plan(masks=False) == pytest.approx(0, abs=1e-6)
    assert compared.error_ratio("conv", nearest, weighted) > 2
    assert compared.loss({"conv": weighted}) < compared.loss({"conv": nearest})


def test_the_table(files, tmp_path, start):
    model = keras.models.load_model(files / "tiny.keras")
    espace_tf.Plan.uniform(model, rank_ratio=0.5, keep=0.5).save(tmp_path / "plan.json")
    process = start(
        "interpolation",
        f"--model={files}/tiny.keras",
        f"--plan={tmp_path}/plan.json",
        f"--data={files}/data.npz",
        f"--markdown={tmp_path}/table.md",
        "--images=8",
    )
    told = process.communicate()[0]
    assert process.returncode == 0 and "all masks" in told, told
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        *(f"| {layer.name}" for layer in model.layers if "conv2d" in layer.name),
        *("| all masks", "| all ranks, no mask", "| the plan"),
    ]


@pytest.mark.parametrize("given, said", [("plan", "--plan must have masks"), ("none", "none.json")])
def test_what_cannot_be_compared_is_refused_in_words(files, tmp_path, start, given, said):
    model = keras.models.load_model(files / "tiny.keras")
    espace_tf.Plan.uniform(model, rank_ratio=0.5, keep=1.0).save(tmp_path / "plan.json")
    process = start(
        "interpolation",
        f"--model={files}/tiny.keras",
        f"--plan={tmp_path}/{given}.json",
        f"--data={files}/data.npz",
    )
    told = process.communicate()[0]
    assert process.returncode == 1 and said in told and "Traceback" not in told, told


def test_a_table_that_cannot_be_written_is_refused_before_any_work(tmp_path, start):
    arguments = ("--model=none.keras", "--plan=none.json", f"--markdown={tmp_path}/gone/table.md")
    process = start("interpolation", *arguments)
    told = process.communicate()[0]
    assert process.returncode == 1 and "--markdown must lie in an existing folder" in told, told
