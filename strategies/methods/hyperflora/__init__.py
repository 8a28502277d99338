"""HyperFLoRA."""
