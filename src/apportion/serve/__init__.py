"""The doors: settings, wiring, command line."""
