"""Federated LoRA methods, each with both its halves and its settings."""
