"""What one training step means; the only room that chooses losses and metrics."""
