"""An Outcome in, Bills out: credits move, none is lost."""
