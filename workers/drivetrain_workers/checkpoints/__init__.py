"""Checkpoints that any world size and any ZeRO stage can load, that are never torn, and that hold no pickle."""
