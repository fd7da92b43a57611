"""A game shard: twenty ticks a second, in each of which the world moves and every player is told what is around.

An operation is one tick for one player. It is in time when the player's update has gone out before the next tick is
due. A tick that starts too late to finish serves whom it can and drops the rest; ticks whose time has passed are not
caught up with: the world takes one longer step instead.

A player's belongings are kept by the peer `assets` (loaded on joining, saved every few seconds and on leaving), and
what happens to players is told by the peer `social`. A player who joins is not in the world before the belongings
are there, and an answer that does not come in time holds the player up for the following second: ticks in which
a player waits count as missed. Two shards at one registry need different seeds.
"""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from apportion.workloads.arena import Arena, Entity
from apportion.workloads.load import Pace
from apportion.workloads.net import Line, Message
from apportion.workloads.probe import Meter, Options, Service, run

TICK = 0.05  # seconds
ANSWER = 0.15  # seconds within which peers must answer
HOLD = 1.0  # seconds that a player is held up by an answer that did not come
SAVE_EVERY = 2.0  # seconds, of one player
EVENT_EVERY = 6.0  # seconds, of one player
SESSION = 60.0  # seconds that a player stays, on average
ROOM, ROOMS = 12, 16  # players who share a room of the social server; rooms that are told of us
LOOT = ("coin", "arrow", "herb", "hide", "rune", "apple", "rope", "lamp", "ring", "shell", "feather", "stone")


@dataclass(slots=True, eq=False)
class Player:
    """Someone who plays, or waits to."""

    slot: int
    name: str
    body: Entity | None = None  # None: not in the world yet
    bag: dict[str, int] = field(default_factory=dict)
    held_until: float = 0.0  # monotonic


class Game(Service):
    """Run a shard of a world, and be its players."""

    kind, size_name, ordinary = "game", "players", 200

    def __init__(self, options: Options, meter: Meter):
        super().__init__(options, meter)
        self.arena = Arena(options.seed)
        self.registry, self.social = self.peers.get("assets"), self.peers.get("social")
        self.prefix = f"game{options.seed}"
        self.players: list[Player] = []
        self.sessions = self.collisions = self.asked_peers = self.answered = self.late_ticks = 0
        self.first = 0  # whose update goes out first: it changes, so that lateness hits all alike
        # Updates leave by datagram. Nobody reads them at the other end: what costs a server is the sending.
        self.sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sink.bind(("127.0.0.1", 0))
        self.wire = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.wire.connect(self.sink.getsockname())
        self.wire.setblocking(False)

    def hear(self, message: Message, line: Line) -> None:
        match message["op"]:
            case "state":
                line.answer(message, players=len(self.players), entities=self._entities(), side=self.arena.side)
            case "look":
                body = self.players[int(message["player"])].body
                near = self.arena.near(body) if body else []
                line.answer(message, near=[[one.number, one.kind, round(x, 2), round(y, 2)] for _, x, y, one in near])
            case other:
                raise ValueError(f"no operation {other!r}: there are state and look")

    def _entities(self) -> int:
        return len(self.arena.players) + len(self.arena.creatures)

    async def connect(self) -> bool:
        """Let some more players in, or out."""
        for _ in range(min(self.size - len(self.players), 50)):
            self.sessions += 1
            slot = len(self.players)
            player = Player(slot, f"{self.prefix}/p{slot}.{self.sessions % 4}")
            self.players.append(player)
            self._join(player)
        for player in self.players[self.size :]:
            self._leave(player)
        del self.players[self.size :]
        await asyncio.sleep(0)
        return len(self.players) < self.size

    def _join(self, player: Player) -> None:
        """Load the belongings of a player, then let it in."""
        if not self._stays(player):
            return
        if self.registry is None:
            player.bag = {thing: self.rng.randrange(1, 9) for thing in LOOT}
            player.body = self.arena.enter()
            return
        since = time.monotonic()

        def loaded(answer: Message | None) -> None:
            if self._answered(player, since, answer) and answer is not None:
                player.bag = _unpack(answer.get("data"))
                if self._stays(player):
                    player.body = self.arena.enter()
            else:
                asyncio.get_running_loop().call_later(HOLD, self._join, player)

        self.registry.ask({"op": "get", "item": player.name}, since + ANSWER, loaded)

    def _stays(self, player: Player) -> bool:
        """Tell whether a player, here or still waiting, has not left meanwhile."""
        return player in self.players[player.slot : player.slot + 1]

    def _leave(self, player: Player) -> None:
        if player.body:
            self._save(player)
            self.arena.leave(player.body)
            player.body = None

    def _done(self, player: Player) -> Callable[[Message | None], None]:
        """Give what takes the answer to an operation that is asked for now."""
        since = time.monotonic()

        def done(answer: Message | None) -> None:
            self._answered(player, since, answer)

        return done

    def _answered(self, player: Player, since: float, answer: Message | None) -> bool:
        """Count an operation of a peer; hold the player up where it was not done in time."""
        now = time.monotonic()
        good = answer is not None and bool(answer.get("ok")) and now <= since + ANSWER
        self.meter.done(good, now - since)
        self.asked_peers += 1
        self.answered += good
        if not good:
            player.held_until = now + HOLD
        return good

    def _save(self, player: Player) -> None:
        if self.registry:
            data = base64.b64encode(json.dumps({"name": player.name, **player.bag}).encode()).decode()
            message = {"op": "put", "item": player.name, "owner": self.prefix, "data": data}
            self.registry.ask(message, time.monotonic() + ANSWER, self._done(player))

    def _tell(self, player: Player) -> None:
        """Post what has happened to a player."""
        if self.social:
            what = self.rng.choice(("met a wolf", "found a ring", "won a duel", "reached the tower", "lost a boat"))
            text = f"{player.name} {what} with {player.bag.get('coin', 0)} coins left #news"
            message = {
                "op": "post",
                "member": player.name[:100],
                "feed": f"#{player.slot // ROOM % ROOMS}",
                "text": text,
            }
            self.social.ask(message, time.monotonic() + ANSWER, self._done(player))

    async def load(self) -> None:
        """Players come and go, save what they own, and have something to tell."""
        saves, events, partings = Pace(), Pace(), Pace()
        while True:
            await asyncio.sleep(0.02)
            await self.connect()
            here = [player for player in self.players if player.body]
            if not here:
                continue
            for _ in saves.due(len(here) / SAVE_EVERY):
                self._save(self.rng.choice(here))
            for _ in events.due(len(here) / EVENT_EVERY):
                self._tell(self.rng.choice(here))
            for _ in partings.due(len(self.players) / SESSION):
                self._replace(self.rng.randrange(len(self.players)))

    def _replace(self, slot: int) -> None:
        """One player leaves and another one joins."""
        self._leave(self.players[slot])
        self.sessions += 1
        self.players[slot] = Player(slot, f"{self.prefix}/p{slot}.{self.sessions % 4}")
        self._join(self.players[slot])

    async def serve(self) -> None:
        due = last = time.monotonic()
        while True:
            await asyncio.sleep(max(due - time.monotonic(), 0))
            now = time.monotonic()
            while now >= due + TICK:  # its time has passed: nobody gets this one
                self.meter.shed(len(self.players))
                self.late_ticks += 1
                due += TICK
            self.arena.step(min(now - last, 0.25))
            last = now
            self._send(due)
            due += TICK

    def _send(self, due: float) -> None:
        """Send the updates of a tick until it is over."""
        served = waiting = 0
        players = self.players[self.first :] + self.players[: self.first]
        for k, player in enumerate(players):
            if k % 8 == 0 and time.monotonic() > due + TICK:
                self.first = (self.first + k) % len(players)
                self.late_ticks += 1
                break
            if player.body is None:
                continue
            update = self.arena.around(player.body)
            try:
                self.wire.send(update)
            except OSError:  # the network is full: this update is lost, as datagrams are
                continue
            self.meter.traffic.sent += len(update)
            if player.held_until > due:
                waiting += 1
            else:
                served += 1
        delay = time.monotonic() - due
        self.meter.done(True, delay, served)
        self.meter.done(False, delay, waiting)
        self.meter.shed(len(players) - served - waiting)
        self.collisions += len(self.arena.touched)
        for a, b in self.arena.touched:
            if a.kind != b.kind and self.players:  # who fights finds something
                finder = self.players[(a.number + b.number) % len(self.players)]
                thing = LOOT[(a.number ^ b.number) % len(LOOT)]
                finder.bag[thing] = (finder.bag.get(thing, 0) + 1) % 1000

    def metrics(self) -> dict[str, int | float]:
        collisions, asked, answered, late = self.collisions, self.asked_peers, self.answered, self.late_ticks
        self.collisions = self.asked_peers = self.answered = self.late_ticks = 0
        return {
            "players": len(self.players),
            "in_world": len(self.arena.players),
            "entities": self._entities(),
            "collisions": collisions,
            "late_ticks": late,
            "peer_calls": asked,
            "peer_answers": answered,
        }

    def close(self) -> None:
        super().close()
        self.wire.close()
        self.sink.close()


def _unpack(data: object) -> dict[str, int]:
    """Give the belongings that the registry keeps; a starter's kit where it has none that we can read."""
    try:
        bag = json.loads(base64.b64decode(str(data)))
        return {thing: int(bag[thing]) for thing in LOOT}
    except (LookupError, TypeError, ValueError):
        return dict.fromkeys(LOOT, 1)


if __name__ == "__main__":
    sys.exit(run(Game))
