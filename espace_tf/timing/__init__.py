"""Milliseconds of layers, of steps and of networks; `measure` knows the runtimes.

Nothing here chooses anything by what it measured.
"""
