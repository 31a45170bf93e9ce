"""Compression, training and judging as commands do them: resumed, summed up, written down.

The calls themselves are those of users; nothing here reads a flag's file.
"""
