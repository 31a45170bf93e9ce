"""What outlives a process: sites, options, plans and analyses as plain classes, and their files.

`comparison` says how far answers changed. They compute nothing that takes long, and import neither
TensorFlow nor Keras.
"""
