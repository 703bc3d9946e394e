"""Schedules, optimizers, the training step and the loop that runs it."""
