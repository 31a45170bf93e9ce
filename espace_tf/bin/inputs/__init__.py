"""Files and names made models, arrays, folders, TensorFlow Datasets, pixels ready for a network.

Nothing is computed from them here; data given as objects is in `espace_tf.data`.
"""
