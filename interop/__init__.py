"""Weights and models in and out: what other systems wrote, under this project's names."""
