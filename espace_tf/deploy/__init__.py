"""Compressed models for other runtimes: an `export_` module a format; written, run, compared.

Only what a runtime needs is here; how long it takes there is measured in `timing`.
"""
