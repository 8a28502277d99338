"""Families of backbones: every file has a ``FAMILY`` that claims and builds models."""
