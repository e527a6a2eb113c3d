"""Training: the loop, and what keeps a run whole."""
