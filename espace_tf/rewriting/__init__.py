"""New models out of given ones: a plan applied, batch norms folded, stretches fused.

Each function takes a model and returns another one; what to do was decided before, as data.
"""
