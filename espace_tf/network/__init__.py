"""Keras models read (`graph`, `sites`) and copied (`cloning`, `likeness`), and what layers are.

The only place that knows Keras's insides: all that is known of a kind of layer, its
multiply-accumulates too, is its one entry in `layer_rules`. Nothing here decides how to compress.
"""
