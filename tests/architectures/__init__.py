"""Architectures of transformers, each in a tiny size, and what this package can do with them."""
