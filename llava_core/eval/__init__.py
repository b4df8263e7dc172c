"""Measures how often a model is right, on pictures and questions that no training has seen."""
