"""From an analysis to a plan, and to the plan whose network is measured at the speed asked for.

Nothing here reads data or trains.
"""
