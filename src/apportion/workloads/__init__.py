"""Real programs to share a machine among; they know nothing of apportion but the probe line they print."""
