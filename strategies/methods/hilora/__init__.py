"""HiLoRA: a root, a cluster and a leaf adapter, trained one after the other."""
