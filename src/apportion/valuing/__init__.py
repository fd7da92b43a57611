"""A Market in, values out: what a share of each pool is worth to each task."""
