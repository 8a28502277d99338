"""Fed-SB: a square core between fixed factors, which come from the gradient of the weights."""
