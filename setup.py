"""Package layout: keras_layers/ and kernels/ install inside espace_tf (metadata: pyproject.toml)."""

from setuptools import setup

setup(
    package_dir={
        "espace_tf": "espace_tf",
        "espace_tf.keras_layers": "keras_layers",
        "espace_tf.kernels": "kernels",
    },
    packages=["espace_tf", "espace_tf.bin", "espace_tf.keras_layers", "espace_tf.kernels"],
    package_data={"espace_tf": ["templates/*.html", "py.typed"]},
)
