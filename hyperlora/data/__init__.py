"""Data sets, their division over clients, and the parts of a client's samples."""
