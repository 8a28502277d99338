"""The page of `hyperlora demo`: images are drawn or dropped, a federation answers with an adapter for them."""
