"""What a model is used for: classification so far."""
