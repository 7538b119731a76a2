"""Gates of a refactoring: results of every algorithm on fixed seeds that have to stay equal to the bit."""
