"""The commands of ``hyperlora``."""
