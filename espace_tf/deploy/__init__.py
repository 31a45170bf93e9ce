"""Compressed models as files for other runtimes: TensorFlow Lite and SavedModel, run and compared.

Only what a runtime needs is here; how long it takes there is measured in `timing`.
"""
