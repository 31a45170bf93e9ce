"""From an analysis to a plan (`planner`), and to a network at a speed or within a loss (`search`,
which `prepared` makes).

Which options may be taken, and which are, is decided here and nowhere else; nothing here computes
statistics, or trains.
"""
