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

AREA = 370.0  # square metres per player
CREATURES = 1.5  # per player
TOUCH = 2.0  # metres between the middles of two that collide
VIEW = 22.0  # metres that one can see
SPEED = 6.0  # metres a second, at most
SEEN = struct.Struct("<IHHhhBB")  # number, x and y in cm modulo 2^16, velocity in dm/s, health, kind


class Entity:
    """Somebody or something that moves."""

    __slots__ = ("health", "kind", "number", "seen", "vx", "vy", "x", "y")

    def __init__(self, number: int, kind: int, x: float, y: float):
        self.number, self.kind, self.x, self.y = number, kind, x, y
        self.vx = self.vy = 0.0
        self.health = 100
        self.seen = b""  # itself as others are told of it, this step


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
        self._next += 1
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
        for one in (*self.players.values(), *self.creatures):
            one.seen = SEEN.pack(
                one.number & 0xFFFFFFFF,
                int(one.x * 100) & 0xFFFF,
                int(one.y * 100) & 0xFFFF,
                int(one.vx * 10),
                int(one.vy * 10),
                one.health,
                one.kind,
            )

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
        """Give a player's update: what it can see."""
        return b"".join([one.seen for one in self.near(player)])

    def near(self, player: Entity) -> list[Entity]:
        """Give everything within a player's view, itself included."""
        side, views = self.side, self._views
        wide = max(int(side / VIEW), 1)
        size, px, py, reach = side / wide, player.x, player.y, VIEW * VIEW
        cx, cy = int(px / size), int(py / size)
        found: list[Entity] = []
        for dx in (-1, 0, 1):
            column, shift_x = cx + dx, 0.0
            if column < 0 or column >= wide:  # across the seam
                shift_x = -side if column < 0 else side
                column %= wide
            for dy in (-1, 0, 1):
                row, shift_y = cy + dy, 0.0
                if row < 0 or row >= wide:
                    shift_y = -side if row < 0 else side
                    row %= wide
                if cell := views.get((column, row)):
                    ox, oy = px - shift_x, py - shift_y
                    found += [one for one in cell if (one.x - ox) ** 2 + (one.y - oy) ** 2 < reach]
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
