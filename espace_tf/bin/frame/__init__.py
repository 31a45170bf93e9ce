"""How a command runs: flags, exit codes, resumed runs, tables and files at its end.

Nothing here knows what any one command does.
"""
