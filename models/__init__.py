"""The mathematics of the system in pure PyTorch: adapters, low-rank algebra, backbones and personalization."""
