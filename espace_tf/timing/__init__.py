"""Milliseconds of layers, of steps and of networks, wherever they run (`runtimes`).

Nothing here chooses anything by what it measured.
"""
