"""Training: the loop, the methods, their losses and pseudo labels, and evaluation."""
