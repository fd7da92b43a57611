"""A Market in, an Allocation out: prices at which everything fits, feasible, with its gap."""
