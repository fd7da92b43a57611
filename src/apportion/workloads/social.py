"""A social server: posts fan out to followers and rooms over real sockets.

Members join with the feeds they follow ("@ann" is what ann posts, "#lobby" a room) and get one line per post:

    join  {"member", "feeds": [...]}                    become a member; a second join adds feeds
    post  {"member", "feed", "text"}                    to everyone who follows the feed
    news  {"op": "news", "n", "feed", "from", "text", "tags", "due"}    what followers receive

A delivery is in time when its reader has it within the deadline after the post was due to be made. Other
programs post in the same way: what happens in a game is told in the rooms "#0", "#1", ...
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from apportion.workloads.load import Backlog, Gate, Window
from apportion.workloads.net import LATE, Line, Message, due_of, on_wire
from apportion.workloads.probe import Meter, Options, Service, run

DEADLINE = 0.1  # seconds from post to reader
FOLLOWS = 12  # feeds that a member follows, on average as many follow a member
ROOM = 12  # members to a room
WORD = re.compile(r"[#@]?\w+")
BLOCKED = frozenset({"spam", "scam", "casino", "freecoins"})
SAID = (
    "the raid starts at dusk bring potions and a shield who sells iron near harbour #market @all look at "
    "this view from tower seven the new patch made archers weak again #patch anyone for a duel in the "
    "arena lost my boat again near the reef #fishing thanks for the lift our guild needs healers #guild "
    "trade you two rubies for that map #trade good night"
)
TALK = SAID.split()  # what members talk of


@dataclass(frozen=True, slots=True)
class Post:
    """A post on its way to its readers."""

    message: Message
    line: Line  # where it came from
    member: str
    feed: str
    text: str


class Moderator:
    """Looks at what is said: blocked words, and the same thing said again and again."""

    RECENT = 2000  # fragments remembered

    def __init__(self) -> None:
        self._order: deque[bytes] = deque()
        self._seen: dict[bytes, int] = {}

    def read(self, text: str) -> tuple[bool, list[str]]:
        """Tell whether a text may be passed on, and its tags."""
        words = [word.lower() for word in WORD.findall(text)]
        if not BLOCKED.isdisjoint(words):
            return False, []
        repeated = 0
        for k in range(0, max(len(words) - 4, 1), 4):
            fragment = hashlib.blake2b(" ".join(words[k : k + 5]).encode(), digest_size=8).digest()
            repeated = max(repeated, self._seen.get(fragment, 0))
            self._seen[fragment] = self._seen.get(fragment, 0) + 1
            self._order.append(fragment)
        while len(self._order) > self.RECENT:
            old = self._order.popleft()
            self._seen[old] -= 1
            if not self._seen[old]:
                del self._seen[old]
        return repeated < 100, [word for word in words if word[0] in "#@"]


class Member:
    """A simulated member: follows some, is followed by others, reads all that comes."""

    def __init__(self, number: int, members: int, seed: int, read: Callable[[bool, float], None]):
        self.name, self.read = f"m{number}", read  # read is told whether news came in time, and after how long
        rng = random.Random(f"{seed} {number}")
        # Some are followed by many, most by few: followers fall off with the cube root of the rank.
        authors = {int(members * rng.random() ** 1.5) for _ in range(FOLLOWS)} - {number}
        self.feeds = [f"@m{author}" for author in sorted(authors)] + [f"#{number // ROOM}"]
        self.line = Line(self.hear)

    def join(self) -> None:
        self.line.send({"op": "join", "member": self.name, "feeds": self.feeds})

    def post(self, feed: str, text: str, due: float) -> bool:
        return self.line.send({"op": "post", "member": self.name, "feed": feed, "text": text, "due": on_wire(due)})

    def hear(self, message: Message, _: Line) -> None:
        if message.get("op") != "news":
            return
        now = time.monotonic()
        due = due_of(message, now, DEADLINE, DEADLINE)
        self.read(now <= due, now - due + DEADLINE)


class Social(Service):
    """Pass posts on to whoever follows them, and be the members who write and read them."""

    kind, size_name, ordinary = "social", "members", 200
    RATE = 1.5  # posts a second of one member

    def __init__(self, options: Options, meter: Meter):
        super().__init__(options, meter)
        self.moderator = Moderator()
        self.window = Window(200)  # news on their way: not yet written, or not yet read by our own members
        self.gate = Gate(self.window, DEADLINE / 2, self._act, self._drop)
        self.backlog: Backlog[Post] = Backlog(0.3 * DEADLINE, self._refuse)
        self.readers: dict[str, set[Line]] = {}  # feed -> connections that follow it
        self.feeds: dict[Line, set[str]] = {}  # the same the other way round
        self.outbox: dict[Line, list[tuple[float, bytes]]] = {}  # due and line; written once per slice of work
        self.members: list[Member] = []
        self.posts = 0
        self.number = 0

    def hear(self, message: Message, line: Line) -> None:
        match message["op"]:
            case "join":
                feeds = {_word(feed) for feed in message["feeds"]}
                if len(feeds) > 1000:
                    raise ValueError(f"{len(feeds)} feeds at once: follow at most 1000")
                self.feeds.setdefault(line, set()).update(feeds)
                for feed in feeds:
                    self.readers.setdefault(feed, set()).add(line)
                line.answer(message)
            case "post":
                member, feed, text = _word(message["member"]), _word(message["feed"]), str(message["text"])[:2000]
                due = due_of(message, time.monotonic(), DEADLINE, DEADLINE)
                post = Post(message, line, member, feed, text)
                if line.there in self.own:  # it has come through the gate before it was sent
                    self.backlog.add(due, post)
                else:
                    self.gate.enter(partial(self._let_in, due, post), partial(self._send_away, post))
            case other:
                raise ValueError(f"no operation {other!r}: there are join and post")

    def gone(self, line: Line) -> None:
        if line.there in self.own:
            self.window.flying = 0  # what it has not read it will not read
        super().gone(line)
        for feed in self.feeds.pop(line, ()):
            self.readers[feed].discard(line)
            if not self.readers[feed]:
                del self.readers[feed]

    def _let_in(self, due: float, post: Post) -> None:
        self.window.flying += len(self.readers.get(post.feed, ()))
        self.backlog.add(due, post)

    def _refuse(self, post: Post) -> None:
        self.window.back(False, len(self.readers.get(post.feed, ())))
        self._send_away(post)

    def _send_away(self, post: Post) -> None:
        self.meter.shed(self._due_deliveries(post.feed))
        post.line.answer(post.message, error=LATE)

    def _due_deliveries(self, feed: str) -> int:
        """Give the readers of a feed, those of ours who wait to be let in among them."""
        here = len(self.readers.get(feed, ()))
        return round(here * self.size / max(min(len(self.members), self.size), 1))

    def _read(self, in_time: bool, delay: float) -> None:
        """Hear from one of our own members that it has read its news."""
        self.meter.done(in_time, delay)
        self.window.back(in_time)

    async def serve(self) -> None:
        await self.backlog.work(self._fan_out, self._flush)

    def _fan_out(self, due: float, post: Post) -> None:
        self.posts += 1
        self.window.flying -= len(self.readers.get(post.feed, ()))
        allowed, tags = self.moderator.read(post.text)
        if not allowed:
            post.line.answer(post.message, error="not passed on: it looks like spam")
            return
        self.number += 1
        news = {"op": "news", "n": self.number, "feed": post.feed, "from": post.member, "text": post.text, "tags": tags}
        line = json.dumps(news | {"due": on_wire(due)}, separators=(",", ":")).encode() + b"\n"
        readers = self.readers.get(post.feed, ())
        for reader in readers:
            self.outbox.setdefault(reader, []).append((due, line))
        self.meter.shed(self._due_deliveries(post.feed) - len(readers))
        post.line.answer(post.message, readers=len(readers))

    def _flush(self) -> None:
        outbox, self.outbox = self.outbox, {}
        for reader, news in outbox.items():
            sent = reader.write(b"".join([line for _, line in news]))
            if not sent:
                self.meter.shed(len(news))
            elif reader.there in self.own:
                self.window.flying += len(news)
            else:  # a reader elsewhere: when it is sent is all that we know
                now = time.monotonic()
                for due, _ in news:
                    self.meter.done(now <= due, now - due + DEADLINE)

    async def load(self) -> None:
        while True:
            await self.connect()
            await self.gate.play(self.RATE * self.size)

    def _draw(self) -> tuple[Member | None, str]:
        """Choose who posts, and where: to a room, or to whoever follows."""
        member = self.pick(self.members)
        if member is None:
            return None, ""
        return member, member.feeds[-1] if self.rng.random() < 0.3 else f"@{member.name}"

    def _act(self, moment: float) -> None:
        member, feed = self._draw()
        start, length = self.rng.randrange(len(TALK)), self.rng.randrange(8, 40)
        text = " ".join(TALK[(start + k) % len(TALK)] for k in range(length))
        if member and member.post(feed, text, moment + DEADLINE):
            self.window.flying += len(self.readers.get(feed, ()))
        else:
            self.meter.shed(self._due_deliveries(feed))

    def _drop(self) -> None:
        self.meter.shed(self._due_deliveries(self._draw()[1]))

    async def connect(self) -> bool:
        """Let some more members in, or out."""
        for number in range(len(self.members), min(self.size, len(self.members) + 10)):
            member = Member(number, self.size, self.options.seed, self._read)
            if not await self.meet(member.line):
                return False
            self.members.append(member)
            member.join()
        for member in self.members[self.size :]:
            member.line.close()
        del self.members[self.size :]
        return len(self.members) < self.size

    def metrics(self) -> dict[str, int | float]:
        posts, self.posts = self.posts, 0
        return {"posts": posts, "members": len(self.members), "connections": len(self.lines)}

    def close(self) -> None:
        super().close()
        for member in self.members:
            member.line.close()


def _word(text: object) -> str:
    if not isinstance(text, str) or not 0 < len(text) <= 100:
        raise TypeError(f"{str(text)[:50]!r} is no name: 1 to 100 characters")
    return text


if __name__ == "__main__":
    sys.exit(run(Social))
