"""Everything before a plan: statistics, the options on offer with their times, their damages.

`trials` tries changes out, `damages` makes units of loss of that. It ends in an `Analysis`: it
makes no plan and rewrites no model.
"""
