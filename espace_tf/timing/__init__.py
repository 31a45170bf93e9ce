"""Milliseconds: how they are measured, of layers and of networks, and where they are kept.

Nothing here chooses anything by what it measured.
"""
