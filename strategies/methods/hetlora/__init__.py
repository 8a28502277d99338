"""HetLoRA: clients of different ranks, which prune their own."""
