"""One step: the loss of the task and of the teacher, gradients, masks that fade in, steps undone.

Nothing here knows of epochs, files or data beyond its batch.
"""
