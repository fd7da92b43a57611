"""A simulated world: players and creatures move, collide, and see what is around them.

The world is a torus whose area grows with its players, so that everybody's surroundings stay equally crowded and a
step costs so much per player. Collisions come from a spatial hash (cells of the size of a touch), what a player
sees from a coarser one (cells of the size of a view); both are made anew each step.
"""

from __future__ import annotations

import math
import random
import struct
from collections import defaultdict
from operator import itemgetter

AREA = 200.0  # square metres per player
CREATURES = 0.6  # per player
TOUCH = 2.0  # metres between the middles of two that collide
VIEW = 20.0  # metres that one can see
SPEED = 6.0  # metres a second, at most
TOLD = 24  # of what one sees, so many are told, the nearest first
SEEN = struct.Struct("<IhhhhBB")  # number, x and y in cm from the player, velocity in dm/s, health, kind
NEARER = itemgetter(0)


class Entity:
    """Somebody or something that moves."""

    __slots__ = ("health", "kind", "number", "vx", "vy", "x", "y")

    def __init__(self, number: int, kind: int, x: float, y: float):
        self.number, self.kind, self.x, self.y = number, kind, x, y
        self.vx = self.vy = 0.0
        self.health = 100


class Arena:
    """All that moves, and who touched whom in the last step."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.players: dict[int, Entity] = {}
        self.creatures: list[Entity] = []
        self.side = 2 * VIEW
        self.touched: list[tuple[Entity, Entity]] = []
        self._views: dict[tuple[int, int], list[Entity]] = {}
        self._next = 0

    def _new(self, kind: int) -> Entity:
        self._next = (self._next + 1) % 2**32
        return Entity(self._next, kind, self.rng.random() * self.side, self.rng.random() * self.side)

    def enter(self) -> Entity:
        player = self._new(1)
        self.players[player.number] = player
        self._fit()
        return player

    def leave(self, player: Entity) -> None:
        self.players.pop(player.number, None)
        self._fit()

    def _fit(self) -> None:
        """Keep the world as crowded as it was."""
        self.side = max(4 * VIEW, math.sqrt(AREA * len(self.players)))
        creatures = round(CREATURES * self.side * self.side / AREA)
        while len(self.creatures) < creatures:
            self.creatures.append(self._new(0))
        del self.creatures[creatures:]

    def step(self, seconds: float) -> None:
        """Move everything, let it collide, and note who is where."""
        side, rng, grid = self.side, self.rng, defaultdict(list)
        cells, views = max(int(side / TOUCH), 1), defaultdict(list)
        width, views_wide = side / cells, max(int(side / VIEW), 1)
        view = side / views_wide
        for one in (*self.players.values(), *self.creatures):
            if rng.random() < 0.05:  # a new idea where to go
                angle, speed = rng.random() * math.tau, rng.random() * SPEED
                one.vx, one.vy = math.cos(angle) * speed, math.sin(angle) * speed
            one.x = x = (one.x + one.vx * seconds) % side
            one.y = y = (one.y + one.vy * seconds) % side
            grid[int(x / width) % cells, int(y / width) % cells].append(one)
            views[int(x / view) % views_wide, int(y / view) % views_wide].append(one)
        self._views = views
        self._collide(grid, cells)

    def _collide(self, grid: dict[tuple[int, int], list[Entity]], cells: int) -> None:
        """Let those who touch bounce off each other; each pair of neighbouring cells is looked at once."""
        self.touched = touched = []
        half = self.side / 2
        for (cx, cy), here in list(grid.items()):
            for dx, dy in ((0, 0), (1, 0), (-1, 1), (0, 1), (1, 1)):
                there = here if dx == dy == 0 else grid.get(((cx + dx) % cells, (cy + dy) % cells))
                if not there:
                    continue
                for k, a in enumerate(here):
                    for b in there[k + 1 :] if there is here else there:
                        x, y = b.x - a.x, b.y - a.y
                        if abs(x) > half or abs(y) > half:  # neighbours across the seam
                            x, y = (x + half) % self.side - half, (y + half) % self.side - half
                        if x * x + y * y < TOUCH * TOUCH:
                            _bounce(a, b, x, y)
                            touched.append((a, b))
        for a, b in touched:
            if a.kind != b.kind:  # a creature bites; who has had enough is well again elsewhere
                bitten = a if a.kind else b
                bitten.health = bitten.health - 1 if bitten.health > 1 else 100

    def around(self, player: Entity) -> bytes:
        """Give a player's update: the nearest of what it can see, from where it stands."""
        return b"".join(
            [
                SEEN.pack(
                    one.number, int(x * 100), int(y * 100), int(one.vx * 10), int(one.vy * 10), one.health, one.kind
                )
                for _, x, y, one in self.near(player)[:TOLD]
            ]
        )

    def near(self, player: Entity) -> list[tuple[float, float, float, Entity]]:
        """Give (distance squared, x, y, entity) of everything within a player's view, itself first."""
        side, views = self.side, self._views
        wide = max(int(side / VIEW), 1)
        size, px, py, reach = side / wide, player.x, player.y, VIEW * VIEW
        cx, cy = int(px / size), int(py / size)
        found: list[tuple[float, float, float, Entity]] = []
        for dx in (-1, 0, 1):
            column, ox = cx + dx, px
            if column < 0 or column >= wide:  # across the seam
                ox = px + side if column < 0 else px - side
                column %= wide
            for dy in (-1, 0, 1):
                row, oy = cy + dy, py
                if row < 0 or row >= wide:
                    oy = py + side if row < 0 else py - side
                    row %= wide
                if cell := views.get((column, row)):
                    found += [
                        (distance, x, y, one)
                        for one in cell
                        if (distance := (x := one.x - ox) * x + (y := one.y - oy) * y) < reach
                    ]
        found.sort(key=NEARER)
        return found


def _bounce(a: Entity, b: Entity, x: float, y: float) -> None:
    """Exchange the velocities along the line between two equal masses, if they approach each other."""
    distance = math.sqrt(x * x + y * y) or 1e-9
    nx, ny = x / distance, y / distance
    closing = (a.vx - b.vx) * nx + (a.vy - b.vy) * ny
    if closing > 0:
        a.vx -= closing * nx
        a.vy -= closing * ny
        b.vx += closing * nx
        b.vy += closing * ny
