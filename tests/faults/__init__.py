"""Faults, mutated records and damaged files: what is tried, what is expected, what was seen (``make faults``)."""
