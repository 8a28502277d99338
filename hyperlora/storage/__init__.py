"""The only writer of files: atomic files, states, and tensors beyond RAM."""
