"""Tests mirror the tree; contract.py is what every engine must do."""
