"""Layers drawn to what the given network computes, without labels: closed forms, then descent.

Part of `compress`, in seconds; what trains for epochs is in `training`.
"""
