"""Benches of every kernel and optimizer against the best public way to do the same work in PyTorch."""
