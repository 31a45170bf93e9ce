"""Fine-tuning: the loop over epochs, what goes on after a kill, learning rates, batch norms.

The model keeps its graph: what changes are weights. What one step does is in `steps`; callbacks for
the user's own `fit` are in `espace_tf.callbacks`.
"""
