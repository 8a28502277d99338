"""pFedHN on LoRA: a hypernetwork alone makes every adapter."""
