"""A small world, a machine to check worlds on, and the examples."""

from __future__ import annotations

from pathlib import Path

MACHINE = {"cpu": 2000.0, "memory": 8.0 * 2**20, "bandwidth": 100_000.0, "storage": 50_000.0}
FILES = sorted((Path(__file__).parent.parent / "examples").glob("*.yaml"))
EXAMPLES = [path for path in FILES if "\npools:" in path.read_text()]  # the others say who takes part in a study
SMALL = """\
version: 1
name: small
rounds: 10
alpha: 0.5
pools:
  here:
    capacity: {cpu: 75% of machine, memory: machine}
    at_most: {memory: 2 GiB}
accounts:
  studio: {entitlement: 0.4}
  guild: {entitlement: 60%}
tasks:
  arena:
    kind: game
    account: studio
    size: 200
    demand:
      cpu: 0.15
      memory: 96 MiB
    floor: {cpu: 0.1}
    needs: [items]
  items:
    kind: assets
    account: guild
    demand: {cpu: 0.2, memory: 64 MiB}
    floor: 40%
events:
  - name: opening
    at: 15 s
    for: 20 s
    task: arena
    load: x6
"""
