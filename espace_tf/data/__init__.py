"""What users bring beside a model: batches of anything, labels, losses; answers judged by them.

Whatever reads, checks or compares data given as objects is here, once (files that a command names
are read in `bin`); nothing here runs an optimizer.
"""
