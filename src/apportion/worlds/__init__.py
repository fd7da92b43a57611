"""A world file in, Tasks and Pools out, round by round."""
