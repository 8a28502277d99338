"""Ditto: a global adapter and a personal one that is held near it."""
