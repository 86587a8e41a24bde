"""Engines whose graphs keep texts end to end on a GPU, without padding."""
