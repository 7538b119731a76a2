"""Dense rewards recovered from demonstrations, and the reinforcement learning that uses them."""
