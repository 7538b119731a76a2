"""Verifiers, paired statistics, procedural tasks, and the preview of an objective before any RL."""
