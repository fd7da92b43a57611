"""The audit against what was seen before and what others saw: prefixes, forks, witnesses, tiles."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_log import KEY, genesis, small_log

from apportion.audit import verify
from apportion.audit.verify import keep
from apportion.core.errors import Forked, Refused, Unverifiable
from apportion.ledger import records
from apportion.ledger.checkpoint import open_head
from apportion.ledger.log import Log
from apportion.ledger.note import COSIGNATURE, Signer
from apportion.ledger.proof import check_fork, fork
from apportion.ledger.tiles import export

VKEY = KEY.verifier.text


def test_a_remembered_head_must_be_a_prefix_and_then_the_new_one_is_remembered(tmp_path: Path):
    path, seen = small_log(tmp_path / "ledger.db", rounds=1), tmp_path / "seen"
    first = verify(path, VKEY, remember=seen).head
    assert open_head(seen.read_bytes(), KEY.verifier)[0] == first
    with Log.open(path, KEY) as log:
        log.append([records.note("9.000", "more")])
    verdict = verify(path, VKEY, remember=seen)
    assert any("seen before is a prefix" in line for line in verdict.checked)
    assert open_head(seen.read_bytes(), KEY.verifier)[0].size == first.size + 1


def test_a_log_that_lost_entries_is_refused_and_what_was_remembered_stays(tmp_path: Path):
    path, seen = small_log(tmp_path / "ledger.db", rounds=1), tmp_path / "seen"
    old = path.read_bytes()
    with Log.open(path, KEY) as log:
        log.append([records.note("9.000", "more")])
    verify(path, VKEY, level=0, remember=seen)
    held = seen.read_bytes()
    path.write_bytes(old)
    with pytest.raises(Refused, match="taken away"):
        verify(path, VKEY, level=0, remember=seen)
    assert seen.read_bytes() == held
    seen.write_text("no head")
    with pytest.raises(Unverifiable, match="seen"):
        verify(path, VKEY, level=0, remember=seen)


def test_what_is_remembered_never_goes_back_and_lies_where_a_link_leads(tmp_path: Path):
    path, seen, link = small_log(tmp_path / "ledger.db", rounds=1), tmp_path / "seen", tmp_path / "link"
    link.symlink_to(seen)
    with Log.open(path) as log:
        old = log.head()
    with Log.open(path, KEY) as log:
        log.append([records.note("9.000", "more")])
    new = verify(path, VKEY, 0, remember=link).head
    assert link.is_symlink()
    keep(seen, old)  # as by somebody who began earlier, on an older copy, and ended later
    assert open_head(seen.read_bytes(), KEY.verifier)[0] == new


def test_a_head_is_remembered_over_a_change_of_keys(tmp_path: Path):
    path, seen, heir = small_log(tmp_path / "ledger.db", rounds=1), tmp_path / "seen", Signer.generate(KEY.name)
    verify(path, VKEY, 0, remember=seen)
    with Log.open(path, KEY) as log:
        log.rotate(heir, "5.000")
        log.append([records.note("6.000", "on")])
    for _ in range(2):  # the second time what was seen before is signed by the heir alone
        assert verify(path, VKEY, 0, remember=seen).head.size == 7
    seen.write_text(Log.create(tmp_path / "other.db", Signer.generate(KEY.name)).append([genesis()]).note)
    with pytest.raises(Unverifiable, match="move it away"):
        verify(path, VKEY, 0, remember=seen)


@pytest.mark.parametrize("more", [0, 3])
def test_a_fork_is_proven_to_who_holds_only_the_key(tmp_path: Path, more: int):
    with Log.create(tmp_path / "one.db", KEY) as log:
        log.append([genesis(), records.note("0.000", "this")])
    with Log.create(tmp_path / "two.db", KEY) as log:
        log.append([genesis(), records.note("0.000", "that")])
        for k in range(more):
            log.append([records.note("0.000", str(k))])
    seen = tmp_path / "seen"
    verify(tmp_path / "one.db", VKEY, remember=seen)
    with pytest.raises(Forked) as error:
        verify(tmp_path / "two.db", VKEY, remember=seen)
    assert error.value.exit_code == 2
    small, large = check_fork(error.value.proof, KEY.verifier)
    assert (small.size, large.size) == (2, 2 + more)
    with pytest.raises(Refused):
        check_fork(error.value.proof, Signer.generate(KEY.name).verifier)
    told = json.loads(error.value.proof)
    told["heads"][1] = told["heads"][0]
    with pytest.raises(Refused):
        check_fork(json.dumps(told), KEY.verifier)


def test_a_true_log_proves_no_fork(tmp_path: Path):
    with Log.create(tmp_path / "one.db", KEY) as log:
        one = log.append([genesis()])
        two = log.append([records.note("0.000", "more")])
        true = fork(one, two, "?", one.root, log.prove_consistency(1))
    with pytest.raises(Refused, match="can be true"):
        check_fork(true.proof, KEY.verifier)


WITNESSES = {name: Signer.generate(f"{name}.example", COSIGNATURE) for name in ("a", "b", "c")}
POLICY = "".join(f"witness {name} {key.verifier.text}\n" for name, key in WITNESSES.items())


def test_a_quorum_of_witnesses_is_asked_for(tmp_path: Path):
    path, policy = small_log(tmp_path / "ledger.db", rounds=1), tmp_path / "policy"
    with Log.open(path, KEY) as log:
        head = log.head()
        log.cosign(head, [WITNESSES[name].sign(head.text, 1_700_000_000).line for name in ("a", "c")])
    for lines, reached in (
        ("quorum none", True),
        ("quorum a", True),
        ("quorum b", False),
        ("group g 2 a b c\nquorum g", True),
        ("group g all a b c\nquorum g", False),
        ("group g any b c # one will do\nquorum g", True),
        ("group g all a c\ngroup h 2 g b\nquorum h", False),
    ):
        policy.write_text(POLICY + lines + "\n")
        if reached:
            assert any(line.startswith("witnesses") for line in verify(path, VKEY, 0, policy=policy).checked)
        else:
            with pytest.raises(Refused, match="quorum"):
                verify(path, VKEY, 0, policy=policy)


def test_a_false_cosignature_is_refused(tmp_path: Path):
    path, policy = small_log(tmp_path / "ledger.db", rounds=1), tmp_path / "policy"
    policy.write_text(POLICY + "quorum none\n")
    with Log.open(path, KEY) as log:
        log.cosign(log.head(), [WITNESSES["a"].sign("another text\n", 1).line])
    with pytest.raises(Refused, match=r"'a\.example' is false"):
        verify(path, VKEY, 0, policy=policy)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "quorum d",
        "quorum",
        "witness a",
        f"witness none {WITNESSES['a'].verifier.text}\nquorum none",
        f"witness a {VKEY}\nquorum a",
        POLICY + "group g 4 a b c\nquorum g",
        POLICY + "group g 0 a\nquorum g",
        POLICY + "group g 1 d\nquorum g",
        POLICY + "group a 1 b\nquorum a",
        POLICY + "quorum a\nquorum b",
        "what is this",
    ],
)
def test_policies_that_say_nothing_sensible_are_no_yes(tmp_path: Path, text: str):
    path, policy = small_log(tmp_path / "ledger.db", rounds=1), tmp_path / "policy"
    policy.write_text(text)
    with pytest.raises(Unverifiable, match="policy"):
        verify(path, VKEY, 0, policy=policy)


def test_a_folder_of_tiles_is_verified_like_the_log_it_is_a_copy_of(tmp_path: Path):
    path, folder = small_log(tmp_path / "ledger.db", rounds=2), tmp_path / "tiles"
    with Log.open(path) as log:
        export(log, folder)
    one, two = verify(path, VKEY), verify(folder, VKEY, remember=tmp_path / "seen")
    assert (one.rounds, one.gap, one.head) == (two.rounds, two.gap, two.head)
    table = next((folder / "blobs").iterdir())
    table.write_bytes(table.read_bytes()[:-1])
    with pytest.raises(Refused):
        verify(folder, VKEY, level=0)
    table.unlink()
    with pytest.raises(Unverifiable):
        verify(folder, VKEY, level=0)


def test_a_verdict_can_be_told_to_machines(tmp_path: Path):
    told = json.loads(json.dumps(verify(small_log(tmp_path / "ledger.db", rounds=1), VKEY).as_dict()))
    assert told["accepted"] is True
    assert told["head"]["size"] == 5
