"""Frozen foundation models, run in two parts: a prefix once per sample and an adapted suffix."""
