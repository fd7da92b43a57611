"""The verbs of trust, as they are typed: receipts, the log, vectors, witnesses; what they exit with and what they say."""

from __future__ import annotations

import json
import re
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from itertools import takewhile
from pathlib import Path

import pytest
from conftest import CASES, Run
from small_log import KEY, small_log

from apportion.audit.quorum import WitnessPolicy
from apportion.ledger import proof, records
from apportion.ledger.log import Log
from apportion.ledger.note import COSIGNATURE, Signer, write_key

VECTORS = sorted((CASES.parent / "ledger").glob("*.json"))
VKEY = KEY.verifier.text


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The folder of a run of three rounds."""
    folder = tmp_path / "out"
    folder.mkdir()
    small_log(folder / "ledger.db")
    write_key(folder / "operator.key", KEY)
    return folder


# receipts


def test_a_receipt_is_checked_without_the_log(run: Run, out: Path, tmp_path: Path):
    code, text, err = run("proof", "--round", 1, "--task", "task-2", "--out", out)
    assert (code, err) == (0, "")
    file = tmp_path / "receipt.json"
    file.write_text(text)
    (out / "ledger.db").rename(tmp_path / "gone")
    (tmp_path / "operator.pub").write_text(VKEY + "\n")
    for key in (VKEY, tmp_path / "operator.pub"):
        code, said, err = run("proof", "check", file, "--key", key)
        assert (code, err) == (0, "")
        assert "demand.tasks" in said
        assert "bills.charges" in said
    told = json.loads(run("proof", "check", file, "--key", VKEY, "-o", "json")[1])
    assert told["accepted"] is True
    assert {row["table"] for row in told["rows"]} >= {"roster", "tasks", "shares", "delivered", "charges"}


def test_a_receipt_that_was_touched_is_refused(run: Run, out: Path, tmp_path: Path):
    text = run("proof", "--round", 1, "--task", "task-2", "--out", out)[1]
    file = tmp_path / "receipt.json"
    paid = re.search(r'\\"paid\\":\\"(\d+)\\"', text)
    assert paid
    for touched in (text.replace(paid[0], paid[0].replace(paid[1], paid[1] + "0")), text[:-9], "{}", "no JSON", "[]"):
        file.write_text(touched)
        code, said, err = run("proof", "check", file, "--key", VKEY)
        assert (code, said) == (1, ""), err
        assert err.startswith("apportion: ")
    file.write_text(text)
    other = Signer.generate(KEY.name).verifier.text
    assert run("proof", "check", file, "--key", other)[0] == 1


def test_a_refused_receipt_is_told_to_machines_too(run: Run, tmp_path: Path):
    (tmp_path / "receipt.json").write_text("{}")
    code, said, err = run("proof", "check", tmp_path / "receipt.json", "--key", VKEY, "-o", "json")
    assert (code, json.loads(said)["accepted"], "'format' is missing" in err) == (1, False, True)


def test_a_proof_of_a_fork_is_never_a_receipt(run: Run, tmp_path: Path):
    heads = []
    for k in range(2):
        with Log.create(tmp_path / f"{k}.db", KEY) as log:
            heads.append(log.append([records.note("0.000", f"history {k}")]))
    file = tmp_path / "fork-proof.json"
    file.write_text(proof.fork(*heads, "Two heads of size 1.").proof)
    code, _, err = run("proof", "check", file, "--key", VKEY)
    assert (code, "a fork is proven" in err) == (2, True)
    told = json.loads(run("proof", "check", file, "--key", VKEY, "-o", "json")[1])
    assert (told["accepted"], told["forked"]) == (False, True)
    file.write_text(proof.fork(heads[0], heads[0], "Two heads of size 1.").proof)
    assert run("proof", "check", file, "--key", VKEY)[0] == 1


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["proof"], "--round N --task NAME"),
        (["proof", "--round", "1"], "--round N --task NAME"),
        (["proof", "--round", "1", "--task", "nobody", "--out", "OUT"], "nobody"),
        (["proof", "--round", "9", "--task", "task-1", "--out", "OUT"], "round 9"),
        (["proof", "--round", "1", "--task", "task-1", "--out", "nowhere"], "nowhere"),
        (["proof", "check", "nowhere.json", "--key", VKEY], "nowhere.json"),
        (["proof", "check", "OUT/operator.key", "--key", "nonsense"], "nonsense"),
        (["proof", "check", "OUT/operator.key"], "--key"),
        (["ledger", "head", "--out", "nowhere"], "nowhere"),
        (["ledger", "sql", "SELECT nothing FROM charges", "--out", "OUT"], "charges"),
        (["ledger", "sql", "DELETE FROM entries", "--out", "OUT"], "not authorized"),
        (["ledger", "export", "OUT/ledger.db/tiles", "--out", "OUT"], "can be written"),
        (["vectors", "nowhere/jcs.json"], "nowhere"),
        (["vectors", "other.json"], "Known: "),
        (["witness", "serve"], "--log"),
        (["witness", "serve", "--log", VKEY, "--key", "OUT/none.key"], "--name"),
        (["witness", "serve", "--log", VKEY, "--key", "OUT/operator.key"], "0x04"),
        (["witness", "serve", "--log", VKEY, "--key", "OUT/operator.key", "--name", "w"], "not of"),
        (["witness", "add", "--out", "OUT"], "--policy FILE"),
        (["witness", "add", "--out", "OUT", "--url", "ftp://x", "--key", "WITNESS"], "http"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(run: Run, out: Path, arguments: list[str], why: str):
    witness = Signer("w.example", bytes(32), COSIGNATURE).verifier.text
    typed = [a.replace("OUT", str(out)).replace("WITNESS", witness) for a in arguments]
    code, said, err = run(*typed)
    assert (code, said) == (2, ""), err
    assert why in err
    assert err.count("\n") == 1


def test_every_proof_of_a_fork_is_kept(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One beside the other, each once; and where none can be kept the verdict is the same."""
    monkeypatch.chdir(tmp_path)
    seen, heads = tmp_path / "seen", []
    for k in range(3):
        with Log.create(tmp_path / f"{k}.db", KEY) as log:
            heads.append(log.append([records.note("0.000", f"history {k}")]).note)
    for k in (1, 2, 1):
        seen.write_text(heads[0])
        code, _, err = run("verify", f"{k}.db", "--key", VKEY, "--level", 0, "--remember", seen)
        assert (code, "fork-proof" in err) == (2, True)
    names = ["fork-proof-1.json", "fork-proof.json"]
    assert sorted(file.name for file in tmp_path.glob("fork-proof*")) == names
    for name in names:
        assert run("proof", "check", name, "--key", VKEY)[0] == 2
        Path(name).unlink()
        Path(name).mkdir()
    code, _, err = run("verify", "1.db", "--key", VKEY, "--level", 0, "--remember", seen)
    assert (code, "not kept" in err) == (2, True)


ENDLESS = Path("/dev/zero")


@pytest.mark.skipif(not ENDLESS.exists(), reason="zero: no /dev/zero here")
def test_a_file_that_never_ends_is_not_read_to_its_end(run: Run, out: Path):
    log, policy = out / "ledger.db", ["--policy", ENDLESS]
    for code, typed in (
        (3, ["verify", log, "--key", ENDLESS]),
        (3, ["verify", log, "--key", VKEY, "--remember", ENDLESS]),
        (3, ["verify", log, "--key", VKEY, *policy]),
        (3, ["verify", ENDLESS, "--key", VKEY]),
        (2, ["proof", "check", ENDLESS, "--key", VKEY]),
        (2, ["witness", "add", "--out", out, *policy]),
        (2, ["witness", "serve", "--log", ENDLESS, "--key", out / "operator.key"]),
    ):
        got, said, err = run(*typed)
        assert (got, said, err.count("\n")) == (code, "", 1), typed


# the log


def test_the_head_is_a_note_that_others_can_keep(run: Run, out: Path, tmp_path: Path):
    code, note, _ = run("ledger", "head", "--out", out)
    with Log.open(out / "ledger.db") as log:
        assert (code, note) == (0, log.head().note)
    kept = tmp_path / "head"
    kept.write_text(note)
    assert run("verify", out / "ledger.db", "--key", VKEY, "--remember", kept)[0] == 0
    told = json.loads(run("ledger", "head", "--out", out / "ledger.db", "-o", "json")[1])
    assert (told["origin"], told["size"], told["note"]) == (KEY.name, 13, note)


def test_a_damaged_log_is_named_by_every_verb_that_reads_it(run: Run, out: Path, tmp_path: Path):
    with closing(sqlite3.connect(out / "ledger.db")) as db:
        db.execute("UPDATE heads SET note = replace(note, '\n13\n', '\n14\n')")
        db.commit()
    for words in (["head"], ["sql", "SELECT 1"], ["blob", "00"], ["export", tmp_path / "tiles"]):
        code, said, err = run("ledger", *words, "--out", out)
        assert (code, said, f"{out / 'ledger.db'}: its last head, of 13 entries: " in err) == (1, "", True)


def test_an_export_can_be_verified_alone(run: Run, out: Path, tmp_path: Path):
    folder = tmp_path / "tiles"
    for _ in range(2):
        code, said, err = run("ledger", "export", folder, "--out", out)
        assert (code, err) == (0, "")
    command = said.strip().rpartition(": apportion ")[2].split()
    (out / "ledger.db").unlink()
    assert run(*command)[0] == 0
    assert run("verify", folder, "--key", VKEY, "--level", 2)[0] == 0


def test_what_a_newcomer_types_is_answered_by_the_way_out(run: Run, out: Path, tmp_path: Path):
    code, _, err = run("verify", out, "--key", VKEY)
    assert (code, str(out / "ledger.db") in err) == (3, True)
    code, _, err = run("verify", out / "ledger.db", "--key", out / "operator.key")
    assert (code, "operator.pub" in err, KEY.text[-20:] in err) == (3, True, False)
    seen = tmp_path / "seen.txt"
    first = run("verify", out / "ledger.db", "--key", VKEY, "--remember", seen, "--level", 1)[1]
    assert "the --remember file begins with this one" in first
    assert "seen before is a prefix" in run("verify", out / "ledger.db", "--key", VKEY, "--remember", seen)[1]


def test_the_page_on_the_log_does_what_it_says(run: Run, out: Path, root: Path, monkeypatch: pytest.MonkeyPatch):
    """Its Python runs, its policy is one, and its commands name verbs and options that there are."""
    page = (root / "docs" / "ledger.md").read_text()
    block = dict(re.findall(r"```(python|text)\n(.*?)```", page, re.DOTALL))
    (out / "operator.pub").write_text(VKEY + "\n")
    monkeypatch.chdir(out.parent)
    exec(block["python"], {})
    key = Signer.generate("w.example", COSIGNATURE).verifier.text
    asked = WitnessPolicy.parse(re.sub(r"\S+\+ID\+BASE64", key, block["text"]))
    assert (asked.quorum, asked.groups) == ("enough", {"enough": (1, ("one", "two"))})
    for line in re.findall(r"^\$ apportion ([^#\n]+)", page, re.MULTILINE):
        verbs = list(takewhile(lambda word: word.isalpha() and word != "tiles", line.split()))
        code, said, _ = run(*verbs, "--help")
        assert code == 0
        assert set(re.findall(r"--[a-z]+", line)) <= set(re.findall(r"--[a-z]+", said))


def test_a_folder_of_another_log_is_not_written_over(run: Run, out: Path, tmp_path: Path):
    """Not even by a log of the same origin: who read the folder before would see a fork."""
    folder = tmp_path / "tiles"
    assert run("ledger", "export", folder, "--out", out)[0] == 0
    before = (folder / "checkpoint").read_bytes()
    for name, rounds, seed in (("same", 5, 99), ("short", 1, 0)):
        (tmp_path / name).mkdir()
        small_log(tmp_path / name / "ledger.db", rounds, seed)
        code, _, err = run("ledger", "export", folder, "--out", tmp_path / name)
        assert (code, "another folder" in err, err.count("\n")) == (2, True, 1)
    assert (folder / "checkpoint").read_bytes() == before
    assert run("verify", folder, "--key", VKEY)[0] == 0


def test_an_export_mends_what_is_damaged(run: Run, out: Path, tmp_path: Path):
    folder = tmp_path / "tiles"
    assert run("ledger", "export", folder, "--out", out)[0] == 0
    whole = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    for file, data in whole.items():
        file.write_bytes(data[:-1])
    (folder / "checkpoint").unlink()
    assert run("ledger", "export", folder, "--out", out)[0] == 0
    assert {file: file.read_bytes() for file in whole} == whole


def test_a_table_is_printed_byte_by_byte(run: Run, out: Path):
    with Log.open(out / "ledger.db") as log:
        digests = [digest for digest, _ in log.blobs()]
    for digest in digests[:3]:
        code, data, _ = run("ledger", "blob", digest, "--out", out)
        assert (code, sha256(data.encode()).hexdigest()) == (0, digest)
    code, _, err = run("ledger", "blob", "00" * 32, "--out", out)
    assert (code, "not in the store" in err) == (3, True)


def test_the_log_answers_in_sql(run: Run, out: Path):
    asked = "SELECT round, COUNT(*) AS tasks FROM charges GROUP BY round"
    told = json.loads(run("ledger", "sql", asked, "--out", out, "-o", "json")[1])
    assert told == [{"round": k, "tasks": 4} for k in range(3)]
    code, said, _ = run("ledger", "sql", asked, "--out", out)
    assert (code, said.split()) == (0, ["round", "tasks", "0", "4", "1", "4", "2", "4"])


# vectors


@pytest.mark.skipif(not VECTORS, reason="cases: no test vectors beside APPORTION_CASES")
def test_the_vectors_of_others_give_none_wrong(run: Run):
    for file in VECTORS:
        code, said, err = run("vectors", file)
        assert (code, err) == (0, "")
        assert re.fullmatch(r"\d+ ok, 0 wrong\n", said)


def test_a_wrong_vector_is_named(run: Run, tmp_path: Path):
    file = tmp_path / "tiles.json"
    cases = [{"id": "one", "op": "index_path", "index": 1234067, "expect": "x001/x234/067"}]
    cases.append({"id": "two", "op": "index_path", "index": 5, "expect": "006"})
    file.write_text(json.dumps({"source": "by hand", "cases": cases}))
    code, said, _ = run("vectors", file)
    assert (code, said.splitlines()[0]) == (1, "1 ok, 1 wrong")
    assert said.splitlines()[1].startswith("two: ")
    code, said, _ = run("vectors", file, "-o", "json")
    assert (code, json.loads(said)["ok"]) == (1, 1)
    for text in ("{", "[]", "{}", '{"cases": 5}', '{"cases": [5]}', '{"cases": {"a": 1}}', "[" * 99_999, "\ud800"):
        file.write_bytes(text.encode(errors="surrogatepass"))
        code, said, err = run("vectors", file)
        assert (code, said, err.count("\n")) == (2, "", 1), text
    for name in ("small_log", "witness_sequence", "tlog_proof"):
        file = tmp_path / f"{name}.json"
        file.write_text('{"cases": [{"id": "x"}]}')
        assert run("vectors", file)[0] in (1, 2)
    assert run("vectors", tmp_path)[0] == 2


# witnesses


@contextmanager
def listening(folder: Path, *logs: str) -> Iterator[tuple[str, str]]:
    """Start a witness as one would; give its URL and its key."""
    code = "from apportion.serve.cli import main; main()"
    asked = [word for log in logs for word in ("--log", log)]
    files = ["--key", folder / "witness.key", "--store", folder / "witness.db"]
    line = [sys.executable, "-c", code, "witness", "serve", "--name", "w.example", "--port", "0", *files, *asked]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True)
    try:
        where = re.search(r"http://[0-9.:]+", process.stdout.readline())[0]
        yield where, process.stdout.readline().rpartition(": ")[2].strip()
    finally:
        process.terminate()
        process.communicate(timeout=20)


def test_a_witness_cosigns_until_it_sees_a_fork(run: Run, out: Path, tmp_path: Path):
    with listening(tmp_path, VKEY) as (url, key):
        code, said, err = run("witness", "add", "--out", out, "--url", url, "--key", key)
        assert (code, err) == (0, ""), said
        assert f"{url}: cosigned" in said
        policy = tmp_path / "policy"
        policy.write_text(f"log {VKEY}\nwitness near {key} {url}\nquorum near\n")
        told = json.loads(run("witness", "add", "--out", out, "--policy", policy, "-o", "json")[1])
        assert (told["reached"], told["size"], told["witnesses"]) == (True, 13, {url: "cosigned"})
        assert run("verify", out / "ledger.db", "--key", VKEY, "--policy", policy)[0] == 0
        assert "— w.example " in run("ledger", "head", "--out", out)[1]
        fork = tmp_path / "fork"
        fork.mkdir()
        write_key(fork / "operator.key", KEY)
        for rounds in (3, 5):  # as large as what the witness knows, and larger
            for file in fork.glob("ledger.db*"):
                file.unlink()
            small_log(fork / "ledger.db", seed=99, rounds=rounds)
            code, said, _ = run("witness", "add", "--out", fork, "--url", url, "--key", key)
            assert (code, "forked" in said, "not reached" in said) == (1, True, True)
    with listening(tmp_path, VKEY) as (url, again):  # the same key, and it still knows
        assert again == key
        small_log(tmp_path / "short.db", rounds=1)
        fork.joinpath("ledger.db").unlink()
        for name in ("", ".head"):
            (tmp_path / f"short.db{name}").rename(fork / f"ledger.db{name}")
        code, _, err = run("witness", "add", "--out", fork, "--url", url, "--key", key)
        assert (code, "entries were lost" in err) == (1, True)
        code, said, _ = run("witness", "add", "--out", out, "--url", url, "--key", key)
        assert (code, "cosigned" in said) == (0, True)


def test_a_run_goes_on_only_where_its_witnesses_stand_behind_it(run: Run, out: Path, tmp_path: Path):
    """An older copy put back with its .head looks whole; only who saw more can tell."""
    world = Path(__file__).parent.parent / "examples" / "launch-day.yaml"
    older = tmp_path / "older"
    older.mkdir()
    write_key(older / "operator.key", KEY)
    small_log(older / "ledger.db", rounds=1)
    with listening(tmp_path, VKEY) as (url, key):
        policy = tmp_path / "policy"
        policy.write_text(f"witness near {key} {url}\nquorum near\n")
        assert run("witness", "add", "--out", out, "--policy", policy)[0] == 0
        before = older.joinpath("ledger.db").read_bytes()
        code, _, err = run("up", world, "--engine", "sim", "--out", older, "--resume", "--witnesses", policy)
        assert (code, "entries were lost" in err, "Traceback" in err) == (1, True, False), err
        assert older.joinpath("ledger.db").read_bytes() == before
        code, _, err = run("up", world, "--engine", "sim", "--out", out, "--resume", "--witnesses", policy)
        assert (code, "did not" in err or "began with" in err) == (2, True), (
            err
        )  # they stand behind it: another world's file
    code, _, err = run("up", world, "--engine", "sim", "--out", out, "--resume", "--witnesses", policy)
    assert (code, "try again" in err) == (1, True), err
    code, _, err = run("up", world, "--out", tmp_path / "new", "--witnesses", policy)
    assert (code, "--resume" in err) == (2, True)


def test_a_running_world_is_witnessed_and_what_came_after_is_said(run: Run, out: Path, tmp_path: Path):
    """The world holds the writer's lock; `witness add` needs neither it nor the key."""
    tiles, policy = tmp_path / "tiles", tmp_path / "policy"
    (out / "operator.key").rename(tmp_path / "operator.key")
    with listening(tmp_path, VKEY) as (url, key), Log.open(out / "ledger.db", KEY) as world:
        policy.write_text(f"witness near {key} {url}\nquorum near\n")
        assert run("ledger", "export", tiles, "--out", out, "--cosigned")[0] == 2
        assert run("witness", "add", "--out", out, "--policy", policy)[0] == 0
        world.append([records.note("9.000", "on"), records.note("9.000", "and on")])
        code, said, err = run("verify", out / "ledger.db", "--key", VKEY, "--policy", policy)
        assert (code, "the 2 entries after that head" in said) == (0, True), err
        assert run("ledger", "export", tiles, "--out", out, "--cosigned")[0] == 0
        assert run("verify", tiles, "--key", VKEY, "--policy", policy)[0] == 0
        assert run("ledger", "export", tiles, "--out", out)[0] == 0
        code, _, err = run("verify", tiles, "--key", VKEY, "--policy", policy)  # its one checkpoint is newer
        assert (code, "quorum 'near' is not reached" in err) == (1, True)
        assert run("ledger", "export", tiles, "--out", out, "--cosigned")[0] == 2  # never back


def test_a_witness_without_its_memory_does_not_start(run: Run, tmp_path: Path):
    key = tmp_path / "witness.key"
    write_key(key, Signer.generate("w.example", COSIGNATURE))
    asked = ["witness", "serve", "--log", VKEY, "--key", key, "--store", tmp_path / "witness.db", "--port", "1"]
    code, _, err = run(*asked)
    assert (code, "touch" in err, (tmp_path / "witness.db").exists()) == (2, True, False)


def test_a_witness_that_is_not_there_is_named(run: Run, out: Path):
    key = Signer.generate("w.example", COSIGNATURE).verifier.text
    code, said, _ = run("witness", "add", "--out", out, "--url", "http://127.0.0.1:9", "--key", key)
    assert (code, "127.0.0.1:9: not reached" in said) == (1, True)


def test_a_witness_answers_what_the_protocol_says(out: Path, tmp_path: Path):
    def ask(url: str, body: bytes) -> tuple[int, str, str]:
        try:
            with urllib.request.urlopen(url + "/add-checkpoint", body, timeout=20) as answer:
                return answer.status, answer.headers.get_content_type(), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers.get_content_type(), error.read().decode()

    with Log.open(out / "ledger.db") as log:
        note = log.head().note
    with listening(tmp_path, VKEY) as (url, key):
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert json.loads(answer.read()) == {"name": "w.example", "key": key}
        assert ask(url, f"old 0\n\n{note}".encode())[:2] == (200, "text/plain")
        assert ask(url, f"old 5\n\n{note}".encode()) == (409, "text/x.tlog.size", "13\n")
        assert ask(url, b"nonsense")[0] == 400
        assert ask(url, b"x" * 100_000)[0] == 413
