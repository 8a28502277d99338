"""The round loop: requests, screening, records, privacy accounting, checkpoints."""
