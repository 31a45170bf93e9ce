"""Keras models read: graph, sites, costs, calls recorded, and what each kind of layer is.

This package and its `copies` alone know Keras's insides: what a kind of layer is, with its
multiply-accumulates, is its one entry in `layer_rules`, and its activation in `activations`; the
steps that it becomes are in `rewriting.pieces`. Nothing here decides how to compress.
"""
