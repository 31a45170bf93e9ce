"""How a command runs: flags, signals, exit codes, resumed runs, tables and files at its end.

Nothing here knows what any one command does.
"""
