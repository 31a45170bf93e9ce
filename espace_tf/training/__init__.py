"""Fine-tuning: the loop, its steps, the teacher's part of the loss, checkpoints, batch norms.

The model keeps its graph: what changes are weights. Callbacks for the user's own `fit` are in
`espace_tf.callbacks`.
"""
