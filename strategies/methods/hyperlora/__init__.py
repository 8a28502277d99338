"""HyperLoRA: starts that are generated for each client's data."""
