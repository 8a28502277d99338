"""Hypernetworks that map the embedding of a signature to a deviation from the anchor."""
