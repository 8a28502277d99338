"""Potara: the federated adapter merged with one that is fine-tuned locally."""
