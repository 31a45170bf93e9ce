"""The mathematics: low-rank factors, masks, and the knapsack that chooses among options.

NumPy and SciPy only: no Keras, no TensorFlow, no files, nothing that knows what a layer is.
"""
