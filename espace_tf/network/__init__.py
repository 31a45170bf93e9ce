"""Keras models read (`graph`, `sites`) and copied (`cloning`, `likeness`), and what layers are.

The only place that knows Keras's insides: what a kind of layer is, its multiply-accumulates too, is
its one entry in `layer_rules`, and its activation in `activations`; the steps that it becomes are
in `rewriting.pieces`. Nothing here decides how to compress.
"""
