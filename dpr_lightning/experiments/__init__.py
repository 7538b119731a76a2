"""Experiments: arms that start from one SFT run, are paid the same FLOPs, and are judged together."""
