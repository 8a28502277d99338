"""Sums over clients of which the server learns the total alone (secure aggregation)."""
