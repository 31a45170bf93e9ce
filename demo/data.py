"""Fashion-MNIST for the demo: Debian's package when it is installed, the shipped subset otherwise.

Fashion-MNIST is Zalando's, MIT licensed (Xiao, Rasul, Vollgraf 2017, arXiv:1708.07747).
"""

import gzip
from pathlib import Path

import numpy as np

DEBIAN_DIR = Path("/usr/share/datasets/fashion-mnist")
SUBSET = Path(__file__).parent / "fashion_mnist_subset.npz"


def read_idx(path: Path) -> np.ndarray:
    """Reads one gzipped idx file of unsigned bytes (the format of MNIST)."""
    with gzip.open(path) as file:
        content = file.read()
    rank = content[3]
    shape = np.frombuffer(content, ">i4", rank, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * rank).reshape(shape)


def load_idx(folder: Path) -> dict[str, np.ndarray]:
    """All of Fashion-MNIST: 60,000 training and 10,000 test images, uint8 [N, 28, 28]."""
    return {
        "x_train": read_idx(folder / "train-images-idx3-ubyte.gz"),
        "y_train": read_idx(folder / "train-labels-idx1-ubyte.gz"),
        "x_test": read_idx(folder / "t10k-images-idx3-ubyte.gz"),
        "y_test": read_idx(folder / "t10k-labels-idx1-ubyte.gz"),
    }


def load(folder: Path = DEBIAN_DIR) -> tuple[dict[str, np.ndarray], str]:
    """Images as float32 [N, 28, 28, 1] in [0, 1], labels as int32; and a name for the source."""
    if folder.is_dir():
        arrays, source = load_idx(folder), f"Fashion-MNIST from {folder}"
    else:
        with np.load(SUBSET) as subset:
            arrays, source = dict(subset), f"the shipped subset {SUBSET.name}"
    return {
        name: (value[..., None] / np.float32(255) if name[0] == "x" else value.astype(np.int32))
        for name, value in arrays.items()
    }, source
