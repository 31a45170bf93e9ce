"""From an analysis to a plan (`planner`), and to a network at a speed or in a budget (`search`).

Which options are chosen is decided here and nowhere else; nothing here computes statistics, or
trains.
"""
