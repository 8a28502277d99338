"""Fed3R: a ridge regression on frozen features out of summed moments."""
