"""The mathematics: low-rank factors, masks, and the knapsack that chooses among options.

NumPy and SciPy only: solvers that any planner may call, nothing that knows what a layer or a file
is.
"""
