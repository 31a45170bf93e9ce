"""Faster trained Keras CNNs: low-rank convolutions and spatial impact masks (ESPACE)."""

from pathlib import Path as _Path

# In a checkout keras_layers/ and kernels/ lie beside this folder; an installed wheel has them inside.
if not (_Path(__file__).parent / "kernels").is_dir():
    __path__.append(str(_Path(__file__).parent.parent))
