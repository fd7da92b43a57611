"""Worlds and policies in, results out: comparisons, reports."""
