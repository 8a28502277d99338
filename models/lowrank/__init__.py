"""Algebra of sums of low-rank products: exact sums, mixtures and best approximations of a rank."""
