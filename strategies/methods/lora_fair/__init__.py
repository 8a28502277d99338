"""LoRA-FAIR."""
