"""FedDPA: a global and a private adapter, mixed at use."""
