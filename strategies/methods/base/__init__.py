"""The contract of a federated LoRA method: the server half and the client half."""
