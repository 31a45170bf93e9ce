"""The mathematics: SVDs and pairs (`factors`), pairs fitted to data (`low_rank`), masks, knapsack.

NumPy and SciPy only: solvers that any planner may call, nothing that knows what a layer or a file
is.
"""
