"""Benchmarks of speed and memory: each runs two things in one go and prints their ratio."""
