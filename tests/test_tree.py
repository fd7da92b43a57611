"""The Merkle tree and the signed notes over it: every proof holds for what is there, and for nothing else."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apportion.core.errors import BadInput, Refused
from apportion.ledger import tree
from apportion.ledger.note import COSIGNATURE, Note, Signer, Verifier, read_key, read_verifier, write_key

# --- tree -----------------------------------------------------------------------------------------------------------


def slow_root(leaves: list[bytes]) -> bytes:
    """RFC 9162, 2.1.1, word for word."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return sha256(b"\x00" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return sha256(b"\x01" + slow_root(leaves[:k]) + slow_root(leaves[k:])).digest()


@pytest.mark.parametrize("n", [*range(20), 63, 64, 65, 100])
def test_every_way_of_growing_gives_the_root_of_the_rfc(n: int):
    data = [f"entry {k}".encode() for k in range(n)]
    hashes = [tree.leaf(d) for d in data]
    frontier, whole = tree.Frontier(), tree.Tree()
    for h in hashes:
        frontier.extend([h])
        whole.extend([h])
    assert tree.root(hashes) == frontier.root() == whole.root() == tree.Tree(hashes).root() == slow_root(data)
    assert [whole.root(k) for k in range(n + 1)] == [slow_root(data[:k]) for k in range(n + 1)]


@given(size=st.integers(1, 80), data=st.data())
@settings(max_examples=60)
def test_proofs_hold_for_what_is_there_and_for_nothing_else(size: int, data: st.DataObject):
    whole = tree.Tree([tree.leaf(bytes([k])) for k in range(size)])
    index, smaller = data.draw(st.integers(0, size - 1)), data.draw(st.integers(1, size))
    leaf, root = tree.leaf(bytes([index])), whole.root()
    proof, growth = whole.inclusion(index, size), whole.consistency(smaller, size)

    tree.verify_inclusion(index, size, leaf, root, proof)
    tree.verify_consistency(smaller, size, whole.root(smaller), root, growth)

    other = tree.leaf(b"other")
    for wrong in (
        lambda: tree.verify_inclusion(index, size, other, root, proof),
        lambda: tree.verify_inclusion(index, size, leaf, other, proof),
        lambda: tree.verify_inclusion(index, size, leaf, root, (*proof, other)),
        lambda: tree.verify_inclusion(size, size, leaf, root, proof),
        lambda: tree.verify_inclusion(index, size, leaf, root, [p[:-1] for p in proof] or [b""]),
        lambda: tree.verify_consistency(smaller, size, other, root, growth),
        lambda: tree.verify_consistency(smaller, size, whole.root(smaller), other, growth),
        lambda: tree.verify_consistency(smaller, size, whole.root(smaller), root, (*growth, other)),
        lambda: tree.verify_consistency(0, size, tree.EMPTY, root, ()),
    ):
        with pytest.raises(Refused):
            wrong()


def test_impossible_proofs_are_bad_input():
    whole = tree.Tree([tree.leaf(b"0"), tree.leaf(b"1")])
    for wrong in (
        lambda: whole.inclusion(2, 2),
        lambda: whole.inclusion(-1, 2),
        lambda: whole.inclusion(0, 3),
        lambda: whole.consistency(0, 2),
        lambda: whole.consistency(2, 1),
        lambda: whole.root(3),
        lambda: whole.hash(1, 1),
    ):
        with pytest.raises(BadInput):
            wrong()


# --- notes and keys -------------------------------------------------------------------------------------------------


def test_keys_are_read_as_they_are_written(tmp_path: Path):
    key = Signer.generate("world.example/a")
    assert Signer.parse(key.text) == key
    assert Verifier.parse(key.verifier.text) == key.verifier
    write_key(tmp_path / "operator.key", key)
    (tmp_path / "operator.pub").write_text(key.verifier.text + "\n")
    assert (tmp_path / "operator.key").stat().st_mode & 0o777 == 0o600
    assert read_key(tmp_path / "operator.key") == key
    assert read_verifier(str(tmp_path / "operator.pub")) == read_verifier(key.verifier.text) == key.verifier
    with pytest.raises(BadInput, match="never overwritten"):
        write_key(tmp_path / "operator.key", key)
    (tmp_path / "operator.key").chmod(0o644)
    with pytest.raises(BadInput, match="chmod 600"):
        read_key(tmp_path / "operator.key")
    with pytest.raises(BadInput, match="nowhere"):
        read_verifier("nowhere.pub")


def test_a_damaged_signer_key_is_refused_without_being_shown():
    key = Signer.generate("world.example/a")
    for wrong in (key.text[:-4], key.text.replace("PRIVATE", "PUBLIC"), key.text.replace("example/a", "example/b")):
        with pytest.raises(BadInput) as error:
            Signer.parse(wrong)
        assert key.text[-20:-4] not in str(error.value)
    for secret in (key.text, key.text[:-4]):  # given where the public key belongs
        with pytest.raises(BadInput, match=r"operator\.pub") as error:
            Verifier.parse(secret)
        assert key.text[-20:-4] not in str(error.value)
    assert str(key.seed) not in repr(key)


@pytest.mark.parametrize("kind", [1, COSIGNATURE])
def test_a_note_holds_until_a_bit_of_it_changes(kind: int):
    key = Signer.generate("w", kind)
    text = "w\n0\n47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\n"
    note = str(Note(text, (key.sign(text, time=1_700_000_000),))).encode()
    (held,) = Note.parse(note).open([key.verifier])
    if kind == COSIGNATURE:
        assert held.time == 1_700_000_000
    for k in range(len(note)):
        for bit in range(8):
            with pytest.raises(Refused):
                Note.parse(note[:k] + bytes([note[k] ^ 1 << bit]) + note[k + 1 :]).open([key.verifier])


def test_a_false_signature_of_a_known_key_spoils_the_note_and_an_unknown_one_says_nothing():
    one, two, text = Signer.generate("one"), Signer.generate("two"), "text\n"
    both = Note(text, (one.sign(text), two.sign("other\n")))
    assert [s.name for s in both.open([one.verifier])] == ["one"]
    with pytest.raises(Refused, match="'two'"):
        both.open([one.verifier, two.verifier])
    with pytest.raises(Refused, match="no known key"):
        both.open([])
