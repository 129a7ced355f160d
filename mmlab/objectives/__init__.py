"""Pretraining tasks as pure functions: tensors in, losses out."""
