"""Files that a user of the package might write."""
