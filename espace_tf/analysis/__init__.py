"""Everything before a plan: statistics of a network, options with their times and damages.

It reads a model and data and ends in an `Analysis`; it makes no plan and rewrites no model.
"""
