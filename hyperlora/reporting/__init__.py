"""Figures, pages and model cards out of a run directory."""
