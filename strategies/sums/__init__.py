"""Runs whose server is told nothing but sums over clients (``privacy.mode = "sums"``)."""
