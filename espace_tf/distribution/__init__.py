"""One step on several devices or processes by tf.distribute: replicas, and the share of each.

Sums, batch statistics and random numbers come out as one device would have them; what is trained or
summed up is in `training` and `analysis`.
"""
