"""FedProx-LoRA: FedIT whose clients are pulled towards the adapter they were sent (FedProx, arXiv 1812.06127)."""
