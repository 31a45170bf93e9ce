"""What users bring beside a model: batches of anything, labels, and the loss that goes with them.

Whatever reads or checks data, labels or losses is here, once; nothing here runs an optimizer.
"""
