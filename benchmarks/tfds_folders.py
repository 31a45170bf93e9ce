"""Fills a folder of TensorFlow Datasets without a network: Fashion-MNIST, and ImageNet's stand-in.

    python benchmarks/tfds_folders.py fashion_mnist --data_dir=out/tfds
    python benchmarks/tfds_folders.py imagenet2012 --data_dir=out/tfds --images=2000
    python benchmarks/tfds_folders.py imagenet2012 --data_dir=out/large --images=2000 --copies=100

Fashion-MNIST is that of the Debian package dataset-fashion-mnist (apt-get install it; MIT licence),
prepared by tensorflow-datasets itself, in about a minute. The stand-in has the name, version and
features of ImageNet and the sizes of its files, with pictures of coloured waves, whose class
decides their direction: what reads it reads ImageNet. With --copies its training images stand there
so many times, as links to the same files: 100 copies of 2000 are 20 GB to read, 0.2 GB on the disk.
"""

import sys
from pathlib import Path

from absl import app, flags

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.stand_ins import Imagenet2012, fashion_mnist, multiply

_DATA_DIR = flags.DEFINE_string("data_dir", None, "The folder.", required=True)
_IMAGES = flags.DEFINE_integer("images", 2000, "Of the stand-in, for training; a tenth to test.", 1)
_COPIES = flags.DEFINE_integer("copies", 1, "How often each training image stands there.", 1)
_SOURCE = flags.DEFINE_string(
    "source", "/usr/share/datasets/fashion-mnist", "Folder of Fashion-MNIST's four idx .gz files."
)


def main(argv: list[str]) -> None:
    """Fills the folder."""
    data_dir = Path(_DATA_DIR.value)
    data_dir.mkdir(parents=True, exist_ok=True)

    def stand_in():
        builder = Imagenet2012(images=_IMAGES.value, data_dir=data_dir)
        builder.download_and_prepare()
        multiply(Path(builder.data_dir), "train", _COPIES.value)

    known = {
        "fashion_mnist": lambda: fashion_mnist(Path(_SOURCE.value), data_dir),
        "imagenet2012": stand_in,
    }
    if len(argv) != 2 or argv[1] not in known:
        raise app.UsageError(f"name one of {', '.join(known)}")
    known[argv[1]]()
    print(f"{argv[1]} is in {data_dir}")


if __name__ == "__main__":
    app.run(main)
