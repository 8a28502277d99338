"""LoRA adapters as values, the model that trains them, their gradients and their export."""
