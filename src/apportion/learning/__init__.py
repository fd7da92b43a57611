"""History in, models out."""
