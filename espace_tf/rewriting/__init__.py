"""New models out of given ones: a plan applied, batch norms folded (`strip`), stretches fused.

`fuse` finds the stretches, `lower` writes their programs, `pieces` says what each kind of layer
becomes there. What to do was decided before, as data.
"""
