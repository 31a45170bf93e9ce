"""Command lines: flags, and the files and folders that they name, are read here and nowhere else.

What a command does with them is in the other packages.
"""
