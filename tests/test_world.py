"""World files: what they say, what is refused and in which words, and what a world wants round by round."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_world import MACHINE, SMALL

from apportion.core.errors import BadWorld
from apportion.core.units import MICRO, SHARE, part
from apportion.worlds.surge import Surge
from apportion.worlds.world import World, load

PROCESS = (
    "kind: game\n    account: studio\n    size: 200",
    "kind: process\n    account: studio\n    command: [python]",
)


@pytest.fixture
def written(tmp_path: Path):
    """Give the world of a text, with some of it replaced."""

    def write(*changes: tuple[str, str], text: str = SMALL) -> World:
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        path = tmp_path / "x.yaml"
        path.write_text(text)
        return load(path)

    return write


def told(caught: pytest.ExceptionInfo[BadWorld], folder: Path) -> str:
    """The message without the folder that pytest made up."""
    assert caught.value.exit_code == 2
    return str(caught.value).replace(f"{folder}/", "")


# fmt: off
REFUSED = [
    # amounts
    ("cpu: 0.15\n", "cpu: -1\n", "x.yaml:18: tasks.arena.demand.cpu is '-1': it is negative or not finite. An amount is at least 0. Write for example '0.15 cores'."),
    ("cpu: 0.15\n", "cpu: 1 apple\n", "x.yaml:18: tasks.arena.demand.cpu is '1 apple': it is not an amount of cpu. Known units: m, core, cores; a bare number means cores. Write for example '0.15 cores'."),
    ("memory: 96 MiB", "memory: 4 Gb", "x.yaml:19: tasks.arena.demand.memory is '4 Gb': it is not an amount of memory. Known units: kB, KiB, MB, MiB, GB, GiB, TiB; a bare number means GiB. Write for example '96 MiB'."),
    ("memory: 96 MiB", "memory: 96 cores", "x.yaml:19: tasks.arena.demand.memory is '96 cores': it is not an amount of memory. Known units: kB, KiB, MB, MiB, GB, GiB, TiB; a bare number means GiB. Write for example '96 MiB'."),
    ("cpu: 0.15\n", "cpu: true\n", "x.yaml:18: tasks.arena.demand.cpu is 'true': it is not an amount of cpu. Write for example '0.15 cores'."),
    ("cpu: 0.15\n", "cpu:\n", "x.yaml:18: tasks.arena.demand.cpu is '': it is not an amount of cpu. Write for example '0.15 cores'."),
    ("cpu: 0.15\n", "cpu: 1e999999\n", "x.yaml:18: tasks.arena.demand.cpu is '1e999999': it is too large to be an amount of cpu. Write for example '1.5 cores'."),
    ("cpu: 0.15\n", "cpu: 1.2.3\n", "x.yaml:18: tasks.arena.demand.cpu is '1.2.3': it is not a number. Write for example '1.5 cores'."),
    ("demand: {cpu: 0.2, memory: 64 MiB}", "demand: 3", "x.yaml:25: tasks.items.demand is '3': amounts are named by resource. Write for example '{cpu: 0.15 cores, memory: 96 MiB}'."),
    ("demand: {cpu: 0.2, memory: 64 MiB}", "demand: {c+: 1}", "x.yaml:25: tasks.items.demand.c+ is '1': a resource is named by letters, digits, '_' and '-'. Write for example 'cpu'."),
    ("demand: {cpu: 0.2, memory: 64 MiB}", "demand: {cpu: 0}", "x.yaml:22: tasks.items: its demand is nothing at all. Write for example 'demand: {cpu: 0.15 cores, memory: 96 MiB}'."),
    # keys and names
    ("account: studio", "acount: studio", "x.yaml:15: tasks.arena.acount is 'studio': a task has no key 'acount'. Did you mean 'account'?"),
    ("account: studio", "account: studo", "x.yaml:15: tasks.arena.account is 'studo': there is no account 'studo'. Did you mean 'studio'?"),
    ("kind: game", "kind: gane", "x.yaml:14: tasks.arena.kind is 'gane': it is no kind of task. Did you mean 'game'?"),
    ("kind: game", "kind: xyz", "x.yaml:14: tasks.arena.kind is 'xyz': it is no kind of task. Known: game, social, commerce, assets, process."),
    ("cpu: 0.15\n", "gpu: 0.15\n", "x.yaml:18: tasks.arena.demand.gpu is '0.15': no pool has any gpu. Did you mean 'cpu'? Or give a pool some.\nx.yaml:20: tasks.arena.floor.cpu is '0.1': the task demands no cpu. Did you mean 'gpu'?"),
    ("name: small", "nmae: small", "x.yaml:2: nmae is 'small': a world has no key 'nmae'. Did you mean 'name'?"),
    ("name: small", "name: a b", "x.yaml:2: name is 'a b': a name is made of letters, digits, '_' and '-', begins with a letter or digit, and has at most 63 of them. Rename it."),
    ("  arena:\n", "  a/b:\n", "x.yaml:13: tasks.a/b: a name is made of letters, digits, '_' and '-', begins with a letter or digit, and has at most 63 of them. Rename it."),
    ("  items:\n", "  arena:\n", "x.yaml:22: tasks.arena stands here again; it stood on line 13. Keep one of them."),
    ("floor: 40%", "floor: 40%\n    floor: 30%", "x.yaml:27: tasks.items.floor stands here again; it stood on line 26. Keep one of them."),
    ("needs: [items]", "needs: [item]", "x.yaml:21: tasks.arena.needs[0] is 'item': there is no task 'item'. Did you mean 'items'?"),
    ("needs: [items]", "needs: items", "x.yaml:21: tasks.arena.needs is 'items': it is a list. Write '[items]', or each entry on a line of its own after '- '."),
    ("needs: [items]", "needs: [items, items]", "x.yaml:21: tasks.arena.needs is '[items, items]': it names 'items' twice. Name it once."),
    ("needs: [items]", "needs: [arena]", "x.yaml:21: tasks.arena.needs[0] is 'arena': a task cannot need itself. Remove it."),
    ("needs: [items]", "pools: [there]", "x.yaml:21: tasks.arena.pools[0] is 'there': there is no pool 'there'. Did you mean 'here'?"),
    ("needs: [items]", "pools: []", "x.yaml:21: tasks.arena.pools is '[]': a task without a pool can never be served. Name a pool, or leave 'pools' out for all."),
    ("needs: [items]", "sponsor: nobody", "x.yaml:21: tasks.arena.sponsor is 'nobody': there is no account 'nobody'. Known: studio, guild."),
    ("needs: [items]", "steady: [gpu]", "x.yaml:21: tasks.arena.steady[0] is 'gpu': there is no demand of task 'arena' called 'gpu'. Did you mean 'cpu'?"),
    # values of the wrong type or size
    ("size: 200", "size: big", "x.yaml:16: tasks.arena.size is 'big': it is not a whole number. Write for example '3'."),
    ("size: 200", "size: true", "x.yaml:16: tasks.arena.size is 'true': it is not a whole number. Write for example '3'."),
    ("size: 200", "size: 0", "x.yaml:16: tasks.arena.size is '0': it must be at least 1."),
    ("needs: [items]", "preemptible: maybe", "x.yaml:21: tasks.arena.preemptible is 'maybe': it is neither 'true' nor 'false'. Write one of them."),
    ("needs: [items]", "cap: 0", "x.yaml:21: tasks.arena.cap is '0': it must be above 0."),
    ("needs: [items]", "weight: 0", "x.yaml:21: tasks.arena.weight is '0': it must be above 0."),
    ("needs: [items]", "priority: 1.5", "x.yaml:21: tasks.arena.priority is '1.5': it is not a whole number. Write for example '3'."),
    ("needs: [items]", "target: 120%", "x.yaml:21: tasks.arena.target is '120%': it is not a share from 0 to 1. Write for example '0.4' or '40%'."),
    ("needs: [items]", "description: 3", "x.yaml:21: tasks.arena.description is '3': it is text. Put it in quotes, for example \"3\"."),
    ("version: 1", "version: 2", "x.yaml:1: version is '2': it is not 1. Write 1."),
    ("version: 1\n", "", "x.yaml:1: version: a world must say its 'version'. Write for example 'version: 1'."),
    ("rounds: 10", "policy: markt", "x.yaml:3: policy is 'markt': it is not 'market', 'static', 'drf', 'maxmin', 'karma', 'equal' or 'softmax'. Did you mean 'market'?"),
    ("rounds: 10", "policy: none", "x.yaml:3: policy is 'none': it is not 'market', 'static', 'drf', 'maxmin', 'karma', 'equal' or 'softmax'."),
    ("rounds: 10", 'rounds: "10"', "x.yaml:3: rounds is '10': in quotes it is text. Write 10 without them."),
    ("needs: [items]", "preemptible: yes", "x.yaml:21: tasks.arena.preemptible is 'yes': it is neither 'true' nor 'false'. Write one of them."),
    ("needs: [items]", 'preemptible: "true"', "x.yaml:21: tasks.arena.preemptible is 'true': in quotes it is text. Write true without them."),
    ("needs: [items]", "weight: .inf", "x.yaml:21: tasks.arena.weight is '.inf': it is not a number. Write for example '1.5'."),
    ("needs: [items]", "weight: 1e999", "x.yaml:21: tasks.arena.weight is '1e999': it is not a number. Write for example '1.5'."),
    ("needs: [items]", "target: .nan", "x.yaml:21: tasks.arena.target is '.nan': it is not a share from 0 to 1. Write for example '0.4' or '40%'."),
    ("needs: [items]", "pirority: 3", "x.yaml:21: tasks.arena.pirority is '3': a task has no key 'pirority'. Did you mean 'priority'?"),
    ("rounds: 10", "kappa: 0.5", "x.yaml:3: kappa is '0.5': it must be at least 1."),
    ("rounds: 10", "half_life: -1", "x.yaml:3: half_life is '-1': it must be above 0."),
    ("rounds: 10", "quantile: 1", "x.yaml:3: quantile is '1': it must be below 1."),
    ("rounds: 10", "credits_per_round: 0", "x.yaml:3: credits_per_round is '0': it must be at least 1e-06."),
    ("rounds: 10", "supply: lots", "x.yaml:3: supply is 'lots': it is not a number. Write for example '1.5'."),
    ("alpha: 0.5", "alpha: 2", "x.yaml:4: alpha is '2': it is not a share from 0 to 1. Write for example '0.4' or '40%'."),
    # floors
    ("floor: {cpu: 0.1}", "floor: {cpu: 0.5}", "x.yaml:20: tasks.arena.floor.cpu is '0.5': the floor is above the demand of 0.15 cores. Lower the floor or raise the demand."),
    ("floor: {cpu: 0.1}", "floor: {cpu: -0.1}", "x.yaml:20: tasks.arena.floor.cpu is '-0.1': it is negative or not finite. An amount is at least 0. Write for example '0.15 cores'."),
    ("floor: 40%", "floor: 140%", "x.yaml:26: tasks.items.floor is '140%': it is not a share from 0 to 1. Write for example '0.4' or '40%'. Or name amounts: '{cpu: 0.1 cores}'."),
    ("floor: 40%", "floor: 40%\n    cap: 0.3", "x.yaml:26: tasks.items.floor is '40%': the floor is above its cap of 0.3. Lower the floor or raise the cap."),
    ("needs: [items]", "cap: 50%", "x.yaml:20: tasks.arena.floor.cpu is '0.1': the floor is above what its cap lets it use, 0.5 x 0.15 cores. Lower the floor or raise the cap."),
    # accounts
    ("entitlement: 0.4", "entitlement: 0.3", "x.yaml:9: accounts: the entitlements come to 0.9, not to 1. Add 0.1 somewhere."),
    ("entitlement: 0.4", "entitlement: 0.5", "x.yaml:9: accounts: the entitlements come to 1.1, not to 1. Take 0.1 away somewhere."),
    ("{entitlement: 0.4}", "0.4", "x.yaml:10: accounts.studio is '0.4': an account is a mapping of keys. Indent its keys below 'studio:'."),
    ("{entitlement: 0.4}", "{entitlement: 0.4, balance: -1}", "x.yaml:10: accounts.studio.balance is '-1': it must be at least 0."),
    ("{entitlement: 0.4}", "{entitlement: 0.4, balance: 5000}", "x.yaml:9: accounts: the balances come to 5000 credits and the supply is 2000. Write 'supply: 5000', or leave a balance out: that account gets the rest."),
    # pools
    ("75% of machine", "175% of machine", "x.yaml:7: pools.here.capacity.cpu is '175% of machine': a pool has more than 0% and at most 100% of the machine. Write for example '75% of machine'."),
    ("75% of machine", "machines", "x.yaml:7: pools.here.capacity.cpu is 'machines': it is not an amount of cpu. Known units: m, core, cores; a bare number means cores. Write for example '0.15 cores'. Or write 'machine' or '75% of machine'."),
    ("75% of machine", "0", "x.yaml:7: pools.here.capacity.cpu is '0': a pool with less than one millicore of cpu has nothing to share. Leave cpu out, or give more."),
    ("{cpu: 75% of machine, memory: machine}", "{}", "x.yaml:7: pools.here.capacity is '{}': the pool has nothing to share. Write for example '{cpu: 75% of machine}'."),
    ("at_most: {memory: 2 GiB}", "at_most: {gpu: 1}", "x.yaml:8: pools.here.at_most.gpu is '1': there is no capacity of pool 'here' called 'gpu'. Did you mean 'cpu'?"),
    ("  here:\n", "  two: {capacity: {cpu: 50% of machine, memory: 1 GiB}}\n  here:\n", "x.yaml:8: pools.here.capacity.cpu is '75% of machine': pools 'two', 'here' together take 125% of this machine's cpu. Bring them to 100% or less."),
    # events
    ("load: x6", "load: six", "x.yaml:32: events[0].load is 'six': it is not a factor above 0. Write for example 'x6'."),
    ("load: x6", "load: 2e6", "x.yaml:32: events[0].load is '2e6': a factor lies between x0.000001 and x1000000. Write for example 'x6'."),
    ("at: 15 s", "at: 1e10", "x.yaml:29: events[0].at is '1e10': it is more than 1e+09 s, some thirty years. Write for example '20 s', '2 min' or '24 h'."),
    ("for: 20 s", "for: 1e-9\n    every: 1e-6", "x.yaml:31: events[0].every is '1e-6': it must be at least 0.001."),
    ("load: x6", "load: -2", "x.yaml:32: events[0].load is '-2': it is not a factor above 0. Write for example 'x6'."),
    ("task: arena", "task: arenas", "x.yaml:31: events[0].task is 'arenas': there is no task 'arenas'. Did you mean 'arena'?"),
    ("task: arena", "task: [arena, bla]", "x.yaml:31: events[0].task[1] is 'bla': there is no task 'bla'. Known: arena, items."),
    ("task: arena", "task: []", "x.yaml:31: events[0].task is '[]': the event is about no task. Name one, for example 'task: arena'."),
    ("at: 15 s", "at: 15 parsecs", "x.yaml:29: events[0].at is '15 parsecs': it is not a time. Write for example '20 s', '2 min' or plain seconds."),
    ("for: 20 s", "for: 0", "x.yaml:30: events[0].for is '0': it must be above 0."),
    ("for: 20 s", "for: 20\n    every: 10 s", "x.yaml:28: events[0]: it lasts 20 s and would begin again after 10 s. Raise 'every'."),
    # the user's own programs
    ("kind: game", "kind: process\n    command: [a]", "x.yaml:17: tasks.arena.size is '200': a process has no size: its command says how large it is. Remove 'size'."),
    ("kind: game\n    account: studio\n    size: 200", "kind: process\n    account: studio", "x.yaml:13: tasks.arena: kind 'process' needs a command. Write for example 'command: [python, -u, my_server.py]'."),
    (PROCESS[0], PROCESS[1].replace("[python]", "python x.py"), "x.yaml:16: tasks.arena.command is 'python x.py': a command is a list of words, no shell reads it. Write for example '[python, -u, my_server.py]'."),
    (PROCESS[0], PROCESS[1].replace("[python]", "[python, [x]]"), "x.yaml:16: tasks.arena.command is '[python, [x]]': a command is a list of words, and ['x'] is none. Put it in quotes."),
    (PROCESS[0], PROCESS[1] + "\n    probe: file", "x.yaml:17: tasks.arena.probe is 'file': a probe is 'stdout' or a mapping: '{url: http://127.0.0.1:9100/metrics, asked: ..., in_time: ...}'."),
    (PROCESS[0], PROCESS[1] + "\n    probe: {url: ftp:x}", "x.yaml:17: tasks.arena.probe.url is 'ftp:x': it is not the address of a metrics page. Write for example 'http://127.0.0.1:9100/metrics'."),
    (PROCESS[0], PROCESS[1] + "\n    probe: {url: http://a/, asked: b}", "x.yaml:17: tasks.arena.probe is '{url: http://a/, asked: b}': it names one counter of two. Write both 'asked' and 'in_time', or neither for a page of JSON."),
    ("needs: [items]", "command: [a]", "x.yaml:21: tasks.arena.command is '[a]': kind 'game' brings its own program and probe. Remove 'command', or write 'kind: process'."),
    ("needs: [items]", "probe: stdout", "x.yaml:21: tasks.arena.probe is 'stdout': kind 'game' brings its own program and probe. Remove 'probe', or write 'kind: process'."),
    # YAML itself
    ("  arena:\n", "\tarena:\n", "x.yaml:13: this is not YAML: a tab stands before its text. YAML takes spaces."),
    ("name: small", "name: sm\0all", "x.yaml:2: the character U+0000 is not text. Remove it, or save the file anew."),
    ("      cpu: 0.15\n", "      cpu: 0.15\n\t  gpu: 1\n", "x.yaml:19: this is not YAML: a tab stands before its text. YAML takes spaces."),
    ("name: small", "name:small", "x.yaml:2: this is not YAML: could not find expected ':'. Write 'key: value', with a space after the colon."),
    ("name: small", r'name: "a\n\e[31m"', r"x.yaml:2: name is 'a\n\x1b[31m': a name is made of letters, digits, '_' and '-', begins with a letter or digit, and has at most 63 of them. Rename it."),
    ("name: opening", r'name: "a\e[31m"', r"x.yaml:28: events[0].name is 'a\x1b[31m': it holds a character that cannot be printed. Write it in plain text."),
    ("name: small", "name: [small", "x.yaml:3: this is not YAML: did not find expected ',' or ']'. Check indentation, colons, quotes and brackets near it."),
    ("kind: game", "kind: !!python/name:os.system game", "x.yaml:14: the tag 'tag:yaml.org,2002:python/name:os.system' is not used in world files. Write the plain value."),
    ("  arena:\n", "  other: *x\n  arena:\n", "x.yaml:13: '*x' repeats nothing: no '&x' stands above it."),
    ("  arena:\n", "  ? [a]\n  : b\n  arena:\n", "x.yaml:13: a key must be plain text."),
    (SMALL, "", "x.yaml: is empty. `apportion schema` tells what a world holds; see examples/."),
    (SMALL, "# nothing yet\n", "x.yaml: is empty. `apportion schema` tells what a world holds; see examples/."),
    (SMALL, "- a\n", "x.yaml:1: a world is a mapping of keys. Begin with 'version: 1'; `apportion schema` tells the rest."),
    (SMALL, "---\na: 1\n---\nb: 2\n", "x.yaml:3: a second document begins here. A world is one document: remove the '---'."),
    (SMALL, "a: &a {b: *a}", "x.yaml:1: '*a' stands inside '&a': a value cannot hold itself."),
    (SMALL, "[" * 100_000, "x.yaml:1: values are nested more than 16 deep here. No world needs that."),
    (SMALL, "a: \x01", "x.yaml:1: the character U+0001 is not text. Remove it, or save the file anew."),
]
# fmt: on


@pytest.mark.parametrize(("old", "new", "message"), REFUSED, ids=[re.sub(r"\W+", " ", r[1])[:40] for r in REFUSED])
def test_a_mistake_is_told_with_file_line_key_value_and_way_out(written, tmp_path, old, new, message):
    with pytest.raises(BadWorld) as caught:
        written((old, new))
    assert told(caught, tmp_path) == message


def test_an_empty_world_says_what_it_lacks(written, tmp_path):
    with pytest.raises(BadWorld) as caught:
        written(text="version: 1\n")
    lines = told(caught, tmp_path).splitlines()
    assert [
        re.match(r"x.yaml:1: (\w+): a world must say its '\1'\. Write for example '\1: \{", line)[1] for line in lines
    ] == ["pools", "accounts", "tasks"]
    with pytest.raises(
        BadWorld, match=r"x.yaml:12: tasks: there is nothing in it. A world has at least one entry under 'tasks'"
    ):
        written(text=SMALL[: SMALL.index("tasks:")] + "tasks: {}\n")


def test_up_to_five_mistakes_are_told_at_once_in_the_order_of_the_file(written, tmp_path):
    with pytest.raises(BadWorld) as caught:
        written(
            ("rounds: 10", "rounds: x"),
            ("alpha: 0.5", "alfa: 1"),
            ("0.4", "-1"),
            ("kind: game", "kind: 7"),
            ("200", "-3"),
            ("40%", "x"),
        )
    lines = told(caught, tmp_path).splitlines()
    assert [line.split(":")[1] for line in lines[:5]] == ["3", "4", "10", "14", "16"]
    assert lines[5:] == ["... and 1 more."]


def test_a_file_full_of_mistakes_is_refused_by_its_first_ones(written, tmp_path):
    with pytest.raises(BadWorld) as caught:
        written(text=SMALL + "".join(f"k{k}: 1\n" for k in range(5000)))
    lines = told(caught, tmp_path).splitlines()
    assert [line.partition(" is ")[0] for line in lines[:5]] == [f"x.yaml:{33 + k}: k{k}" for k in range(5)]
    assert lines[5:] == ["... and many more."]


def test_all_names_that_refer_to_nothing_are_told_at_once(written, tmp_path):
    with pytest.raises(BadWorld) as caught:
        written(
            ("account: studio", "account: studoi"),
            ("needs: [items]", "needs: [item]"),
            ("floor: 40%", "sponsor: glid"),
            ("task: arena", "task: areena"),
        )
    assert [line.partition(" is ")[0] for line in told(caught, tmp_path).splitlines()] == [
        "x.yaml:15: tasks.arena.account", "x.yaml:21: tasks.arena.needs[0]",
        "x.yaml:26: tasks.items.sponsor", "x.yaml:31: events[0].task",
    ]  # fmt: skip


def test_a_file_that_cannot_be_read_says_so(tmp_path):
    (tmp_path / "world.yaml").write_text(SMALL)
    with pytest.raises(BadWorld) as caught:
        load(tmp_path / "wrld.yaml")
    assert told(caught, tmp_path) == "wrld.yaml: there is no such file. Did you mean 'world.yaml'?"
    with pytest.raises(BadWorld) as caught:
        load(tmp_path / "nowhere" / "x.yaml")
    assert told(caught, tmp_path) == "nowhere/x.yaml: there is no such file. Name an existing world file."
    with pytest.raises(BadWorld) as caught:
        load(tmp_path)
    assert (
        str(caught.value)
        == f"{tmp_path}: is a directory, not a world file. Name a file in it, for example '{tmp_path / 'world.yaml'}'."
    )
    (tmp_path / "latin.yaml").write_bytes("version: 1\nname: caf\u00e9\n".encode("latin-1"))
    with pytest.raises(BadWorld) as caught:
        load(tmp_path / "latin.yaml")
    assert told(caught, tmp_path) == "latin.yaml:2: byte 0xe9 is not UTF-8 text. Save the file in the encoding UTF-8."
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(9 * 2**20)
    with pytest.raises(BadWorld, match="is larger than 8 MiB, which no world file needs"):
        load(tmp_path / "huge.yaml")


def test_aliases_repeat_values_but_cannot_explode(written, tmp_path):
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n"
    bomb += "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    with pytest.raises(BadWorld, match="more than 400000 values \\(aliases expanded\\)"):
        written(text=bomb)
    world = written(("    demand:\n", "    demand: &d\n"), ("demand: {cpu: 0.2, memory: 64 MiB}", "demand: *d"))
    assert world.tasks(0).base.tolist() == [[150, 96 * 1024]] * 2
    with pytest.raises(BadWorld) as caught:
        written(
            ("    demand:\n", "    demand: &d\n"),
            ("cpu: 0.15", "cpu: -1"),
            ("demand: {cpu: 0.2, memory: 64 MiB}", "demand: *d"),
        )
    assert [line.split(" is ")[0] for line in told(caught, tmp_path).splitlines()] == [
        "x.yaml:18: tasks.arena.demand.cpu", "x.yaml:18: tasks.items.demand.cpu",
    ]  # fmt: skip


def test_plain_words_stay_words(written):
    """YAML 1.1 would make false of an account called `no`, and 90 of 1:30."""
    world = written(("studio: {ent", "no: {ent"), ("account: studio", "account: no"), ("name: opening", "name: 1:30"))
    assert world.accounts[0] == ("no", "guild")
    assert world.events[0].name == "1:30"


def test_a_file_with_a_byte_order_mark_and_windows_lines_is_read(tmp_path):
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert load(tmp_path / "x.yaml").name == "small"


# What a world says


def test_defaults(written):
    world = written(("name: small\n", ""), ("rounds: 10\n", ""))
    assert (world.name, world.rounds, world.round_seconds, world.policy, world.seed) == ("x", None, 1.0, "market", 0)
    assert (world.alpha, world.kappa, world.half_life, world.quantile) == (0.5, 4.0, None, None)
    assert (world.credits_per_round, world.supply) == (100.0, 2000.0)
    arena = world.specs["items"]
    assert (arena.size, arena.target, arena.weight, arena.priority, arena.sponsor, arena.preemptible) == (
        100,
        0.95,
        1,
        0,
        None,
        False,
    )


def test_the_digest_is_that_of_the_bytes(written, tmp_path):
    import hashlib

    assert written().digest == hashlib.sha256((tmp_path / "x.yaml").read_bytes()).hexdigest()


def test_balances_come_to_the_supply(written):
    even = written()
    assert even.balance.tolist() == [800 * MICRO, 1200 * MICRO]
    rich = written(("entitlement: 0.4", "entitlement: 0.4, balance: 1700.5"))
    assert rich.balance.tolist() == [1_700_500_000, 299_500_000]
    stated = written(
        ("entitlement: 0.4", "entitlement: 0.4, balance: 5"), ("entitlement: 60%", "entitlement: 60%, balance: 7")
    )
    assert (stated.supply, stated.balance.tolist()) == (12.0, [5 * MICRO, 7 * MICRO])


def test_entitlements_that_were_rounded_come_to_one(written):
    thirds = "entitlement: 0.333333333}\n  third: {entitlement: 0.333333333"
    world = written(("entitlement: 0.4", thirds), ("entitlement: 60%", "entitlement: 0.333333333"))
    assert world.accounts[1].sum() == pytest.approx(1, abs=1e-15)


def test_pools_read_the_machine_and_stay_below_their_bound(written):
    world = written()
    assert world.pools({"cpu": 2000, "memory": 2**20}).capacity.tolist() == [[1500, 2**20]]
    assert world.pools({"cpu": 1001, "memory": 8 * 2**20}).capacity.tolist() == [[750, 2 * 2**20]]
    with pytest.raises(
        BadWorld,
        match=r"x.yaml:7: pools.here.capacity.memory is 'machine': this machine does not tell its memory \(it tells cpu\). Write an amount, for example '100 GiB'",
    ):
        world.pools({"cpu": 1000})


def test_resources_of_the_worlds_own_are_counted_in_thousandths(written):
    world = written(
        ("memory: machine", "memory: machine, licences: 5"),
        ("demand: {cpu: 0.2, memory: 64 MiB}", "demand: {cpu: 0.2, licences: 1.5}"),
    )
    assert world.resources == ("cpu", "memory", "licences")
    assert world.tasks(0).base[1].tolist() == [200, 0, 1500]


def test_a_task_may_use_the_pools_that_have_all_it_wants(written):
    pools = "  here:\n", "  small: {capacity: {cpu: 1}}\n  here:\n"
    assert written(pools).tasks(0).eligible == ((1,), (1,))
    assert written(pools, ("demand: {cpu: 0.2, memory: 64 MiB}", "demand: {cpu: 0.2}")).tasks(0).eligible == (
        (1,),
        (0, 1),
    )
    with pytest.raises(
        BadWorld,
        match=r"x.yaml:24: tasks.items.demand is '{cpu: 0.2, memory: 64 MiB}': no single pool has all of cpu, memory",
    ):
        written(
            pools,
            ("    capacity: {cpu: 75% of machine, memory", "    capacity: {memory"),
            ("demand:\n      cpu: 0.15\n", "demand:\n"),
            ("    floor: {cpu: 0.1}\n", ""),
        )


def test_commands_and_probes_reach_the_specs(written):
    world = written(
        (
            PROCESS[0],
            PROCESS[1].replace("[python]", "[python, -c, 'print(1)', 7]")
            + "\n    probe: {url: http://a/m, asked: x, in_time: y}",
        )
    )
    spec = world.specs["arena"]
    assert spec.command == ("python", "-c", "print(1)", "7")
    assert (spec.probe.url, spec.probe.asked, spec.probe.in_time) == ("http://a/m", "x", "y")


# What a world wants, round by round


def test_an_event_multiplies_demand_and_bid_while_it_lasts_and_the_floor_stays(written):
    world = written()
    before, during, after = world.tasks(14), world.tasks(15), world.tasks(35)
    assert during.surge.tolist() == [6, 1]
    assert before.surge.tolist() == after.surge.tolist() == [1, 1]
    assert during.demand.tolist() == [[900, 576 * 1024], [200, 64 * 1024]]
    assert (during.base == before.demand).all()
    for tasks in (before, during):
        assert part(tasks.demand[:, 0], np.rint(tasks.floor * SHARE))[0] == 100


def test_what_is_steady_does_not_follow_the_load(written):
    tasks = written(("needs: [items]", "steady: [memory]")).tasks(20)
    assert tasks.demand[0].tolist() == [900, 96 * 1024]


def test_events_overlap_repeat_and_name_several_tasks(written):
    world = written(
        ("load: x6\n", "load: 6\n  - {name: b, at: 30, for: 2.5, every: 10, task: [arena, items], load: x0.5}\n")
    )
    assert [world.tasks(n).surge.tolist() for n in (29, 30, 32, 33, 40, 52, 53)] == [
        [6, 1], [3, 0.5], [3, 0.5], [6, 1], [0.5, 0.5], [0.5, 0.5], [1, 1],
    ]  # fmt: skip


def test_world_time_is_number_times_round_seconds(written):
    world = written(("rounds: 10", "round_seconds: 700 ms"), ("at: 15 s", "at: 2.1"), ("for: 20 s", "for: 2.1 s"))
    assert [world.tasks(n).surge[0] for n in range(2, 7)] == [1, 6, 6, 6, 1]  # to a float, 3 * 0.7 is less than 2.1


@given(
    seed=st.integers(0, 2**63 - 1),
    numbers=st.lists(st.integers(0, 300), min_size=2, max_size=6),
    other=st.integers(0, 2**63 - 1),
)
def test_chance_depends_on_seed_and_round_and_not_on_the_order_of_asking(tmp_path_factory, seed, numbers, other):
    path = tmp_path_factory.getbasetemp() / "order.yaml"
    path.write_text(SMALL)
    one, two = load(path), load(path)
    forth = {n: one.tasks(n, seed) for n in numbers}
    two.tasks(17, other)
    back = {n: two.tasks(n, seed) for n in reversed(numbers)}
    for n in numbers:
        assert (forth[n].demand == back[n].demand).all()
        assert (forth[n].surge == back[n].surge).all()
        assert (forth[n].demand == np.rint(forth[n].demand)).all()
        assert (forth[n].floor <= forth[n].cap).all()


def test_seeds_differ_and_no_seed_has_no_chance(written):
    world = written()
    plain = [world.tasks(n).demand for n in range(300)]
    assert all((plain[n] == plain[0]).all() for n in range(15))
    first, second = ([world.tasks(n, seed).demand for n in range(300)] for seed in (1, 2))
    assert sum((a == b).all() for a, b in zip(first, second, strict=True)) < 10
    calm = np.array([d[:, 0] for d in first[40:]]) / plain[0][:, 0]
    assert calm.mean() == pytest.approx(1, abs=0.05)
    assert 0.03 < np.log(calm).std() < 0.2
    steps = np.diff(np.log(calm), axis=0)
    assert steps.std() < np.log(calm).std()  # it drifts, it does not jump
    begins = {next(n for n in range(40) if world.tasks(n, seed).surge[0] > 1) for seed in range(20)}
    assert len(begins) > 1
    assert all(13 <= n <= 17 for n in begins)


def test_chance_drifts_across_the_blocks_it_is_drawn_in():
    """From each round to the next, also from 63 to 64, the noise keeps about 0.8 of what it was."""
    surge = Surge((), (), 4000)
    for number in (10, 63, 127):
        now, then = np.log(surge.noise(number, 5)), np.log(surge.noise(number + 1, 5))
        assert np.corrcoef(now, then)[0, 1] == pytest.approx(0.8, abs=0.05)


@given(seed=st.integers(0, 2**32), number=st.integers(0, 60), floor=st.integers(0, 150), load_factor=st.floats(0.2, 50))
def test_a_promise_is_kept_to_the_base_unit_whatever_the_load(tmp_path_factory, seed, number, floor, load_factor):
    path = tmp_path_factory.getbasetemp() / "promise.yaml"
    path.write_text(
        SMALL.replace("floor: {cpu: 0.1}", f"floor: {{cpu: {floor} m}}").replace("load: x6", f"load: {load_factor}")
    )
    tasks = load(path).tasks(number, seed)
    kept = part(tasks.demand[:, 0], np.rint(tasks.floor * SHARE))[0]
    assert kept >= min(floor, tasks.demand[0, 0])


# Floors that cannot fit


def test_floors_that_cannot_fit_name_what_binds_by_how_much_and_the_way_out(written, tmp_path):
    world = written(("75% of machine", "170 m"))
    with pytest.raises(BadWorld) as caught:
        world.check(MACHINE)
    assert told(caught, tmp_path) == (
        "x.yaml:20: tasks.arena.floor is '{cpu: 0.1}': the floors of 2 tasks together promise 0.18 cores of cpu, and pool 'here'"
        " has 0.169 cores (a millicore less, for rounding): 0.011 cores too much. Lower floors (this one takes 0.1 cores) or"
        " raise pools.here.capacity.cpu."
    )
    world = written(("at_most: {memory: 2 GiB}", "at_most: {memory: 80 MiB}"))
    with pytest.raises(
        BadWorld,
        match=r"promise 0.087501 GiB of memory, and pool 'here' has 0.078124 GiB .* or raise pools.here.at_most.memory",
    ):
        world.check(MACHINE)


def test_floors_that_just_fit_are_accepted(written):
    written(("75% of machine", "181 m")).check(MACHINE)
    with pytest.raises(BadWorld, match=r"0\.001 cores too much"):
        written(("75% of machine", "180 m")).check(MACHINE)


def test_a_demand_larger_than_its_pool_is_no_mistake(written):
    world = written(("cpu: 0.15\n", "cpu: 64\n"))
    world.check(MACHINE)
    assert world.tasks(0).demand[0, 0] == 64_000


def test_floors_over_several_pools_are_checked_exactly(written, tmp_path):
    """Each pool holds one floor of 600; a third task fits nowhere, though no single pool is asked for too much by itself."""
    text = SMALL[: SMALL.index("pools:")] + (
        "pools:\n  east: {capacity: {cpu: 1}}\n  west: {capacity: {cpu: 1}}\n  far: {capacity: {cpu: 9}}\n"
        + SMALL[SMALL.index("accounts:") : SMALL.index("tasks:")]
        + "tasks:\n"
        + "".join(
            f"  t{k}: {{kind: game, account: studio, demand: {{cpu: 1}}, floor: {{cpu: {{}}}}, pools: [east, west]}}\n".replace(
                "{}", f
            )
            for k, f in enumerate(["0.6", "0.6", "0.75"])
        )
        + "  t3: {kind: game, account: guild, demand: {cpu: 9}, floor: 90%}\n"
    )
    world = written(text=text.replace("0.75", "0.7"))
    world.check({})
    with pytest.raises(BadWorld) as caught:
        written(text=text.replace("0.75", "0.9")).check({})
    assert told(caught, tmp_path) == (
        "x.yaml:15: tasks.t2.floor is '{cpu: 0.9}': the floors of 3 tasks together promise 2.1 cores of cpu, and pools 'east', 'west'"
        " together have 1.998 cores (a millicore less, for rounding): 0.102 cores too much. Lower floors (this one takes 0.9 cores)"
        " or raise pools.east.capacity.cpu."
    )


def test_a_surge_that_raises_a_floor_through_steady_memory_is_found_at_load(written):
    """Its memory floor is three quarters of a demand that does not grow, so in the surge it has three quarters of the CPU."""
    change = ("floor: {cpu: 0.1}\n    needs: [items]", "floor: {memory: 72 MiB}\n    steady: [memory]")
    written(change).check(MACHINE)
    with pytest.raises(
        BadWorld,
        match=r"tasks.arena.floor is '{memory: 72 MiB}': .* promise 0.755 cores of cpu at 15 s, and pool 'here' has 0.749",
    ):
        written(change, ("75% of machine", "750 m")).check(MACHINE)


def test_a_command_that_cannot_be_started_is_refused_by_its_place(written, tmp_path):
    world = written(PROCESS, ("[python]", "[./no-such-program, -x]"))
    with pytest.raises(BadWorld) as caught:
        world.check_commands()
    assert told(caught, tmp_path).startswith(
        "x.yaml:16: tasks.arena.command is '[./no-such-program, -x]': './no-such-program' is no"
    )
    written(PROCESS, ("[python]", f"[{sys.executable}]")).check_commands()
