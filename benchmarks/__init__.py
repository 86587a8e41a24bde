"""Measurements, and what they need: checkpoints of any size."""
