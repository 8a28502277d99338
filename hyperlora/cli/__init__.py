"""HyperLoRA on Flower."""
