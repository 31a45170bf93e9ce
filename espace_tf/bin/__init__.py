"""Command lines: flags, and the files and folders that they name, are read here and nowhere else.

A command is one file and `Command` in `command` its frame; what it computes is in the other
packages, and only what kills and summaries need is here.
"""
