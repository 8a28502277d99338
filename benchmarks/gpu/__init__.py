"""What a GPU makes of the product's work: ``python -m benchmarks.gpu``."""
