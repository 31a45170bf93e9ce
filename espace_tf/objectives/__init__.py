"""What answers are judged by: labels, losses, what gradients are taken of, distances.

Each loss of `compile` becomes one of `losses`, once; nothing here reads data or runs an optimizer.
"""
