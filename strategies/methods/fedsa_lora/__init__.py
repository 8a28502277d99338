"""FedSA-LoRA: A is shared, B and the head stay with the client."""
