"""Tests that compare against truth; the layout mirrors the package."""
