"""What we talk about: units, markets, allocations, rounds, clocks and errors."""
