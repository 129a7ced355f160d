"""Downstream tasks on scenes, each with exact answers, and one way to fine-tune any system."""
