"""The mathematics: SVDs and pairs (`factors`), fitted to data (`low_rank`, `refit`), masks.

NumPy and SciPy only: solvers that any planner may call, nothing that knows what a layer or a file
is.
"""
