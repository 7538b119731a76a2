"""The YAML recipes, installed as package data so that a dependent project finds them too."""
