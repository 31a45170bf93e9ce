"""Keras models read and copied: graph, convolutions, layer rules, recorded calls, costs.

The only place that knows Keras's insides; nothing here decides how to compress.
"""
