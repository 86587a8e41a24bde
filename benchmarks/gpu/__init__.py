"""What a machine with a GPU measures, in one call: python -m benchmarks.gpu OUT."""
