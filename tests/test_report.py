"""The page: complete in itself, true to the rounds, harmless whatever a task is called, and drawn."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import played
import pytest
import small_log
from hypothesis import given
from hypothesis import strategies as st

from apportion.core.round import Round
from apportion.ledger import reading
from apportion.ledger.log import Log
from apportion.study import charts, report
from apportion.study.report import About, embed, render
from apportion.study.series import gather, spells, thin

STATIC = Path(report.__file__).parent / "static"
NASTY = (
    "</script><script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "{{ 7 * 7 }} \"'& \u2028" + "x" * 90,
    "战斗 · عربى",
)


class Page(HTMLParser):
    """What a page holds, read as a browser would."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.words: list[str] = []
        self._now = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._now = tag
        if tag in self.inside:
            self.inside[tag].append("")

    def handle_endtag(self, tag):
        self._now = ""

    def handle_data(self, data):
        if self._now in self.inside:
            self.inside[self._now][-1] += data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def data(self) -> dict:
        return json.loads(self.inside["script"][0])

    def named(self, tag: str, key: str) -> list[str]:
        return [a[key] for t, a in self.tags if t == tag and a.get(key) is not None]


def shown(rounds: list[Round], tmp_path: Path, **about) -> Page:
    path = tmp_path / "report.html"
    render(rounds, About(**{"world": "launch-day", "accounts": played.ACCOUNTS} | about), path)
    return Page(path.read_text(encoding="utf-8"))


# complete in itself, and harmless


@pytest.mark.parametrize("count", [0, 1, 10])
def test_the_page_loads_nothing_and_says_so_to_the_browser(tmp_path, count):
    page = shown(played.rounds(count=count, names=NASTY, pools=2), tmp_path, world=NASTY[0], description=NASTY[1])
    links = [v for tag, a in page.tags for k, v in a.items() if k in ("src", "href", "srcset", "action")]
    assert all(v.startswith(("#", "data:,")) for v in links)
    (policy,) = [a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for text in (*page.inside["style"], *page.inside["script"][1:]):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert not any(key.startswith("on") or key == "style" for _, a in page.tags for key in a)


def test_names_stay_text_wherever_they_stand(tmp_path):
    rounds = played.rounds(count=4, names=NASTY)
    note = "<b>restarted</b> </script>"
    rounds[2] = replace(rounds[2], outcome=replace(rounds[2].outcome, notes=(note,), enforcer=NASTY[0]))
    page = shown(
        rounds, tmp_path, world=NASTY[0], policy=NASTY[1], accounts=NASTY[:2], verify=NASTY[0], facts=(NASTY[:2],)
    )
    plain = shown(played.rounds(count=4), tmp_path, facts=(("a", "b"),))
    assert sorted(t for t, _ in page.tags if t in ("script", "img", "b")) == ["script"] * 3
    assert len(page.inside["script"]) == len(plain.inside["script"])
    spaced = [re.sub(r"\s+", " ", name) for name in NASTY]
    assert [name in page.text for name in (*spaced, note)] == [True] * 5
    assert [line["label"] for line in page.data["charts"][0]["lines"]] == list(NASTY)


@given(st.recursive(st.text() | st.integers() | st.none(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)))
def test_embedded_json_is_the_same_json_and_ends_no_script(data):
    text = embed(data)
    assert json.loads(text) == data
    assert not set(text) & set("<>&\u2028\u2029")


def test_what_is_vendored_is_what_its_table_says():
    table = (STATIC / "README.md").read_text()
    rows = re.findall(r"^\| `(\S+)` \|.*`([0-9a-f]{64})` \|$", table, re.MULTILINE)
    assert {name for name, _ in rows} == {"uplot.min.js", "uplot.min.css"}
    for name, digest in rows:
        assert hashlib.sha256((STATIC / name).read_bytes()).hexdigest() == digest
    assert "MIT" in (STATIC / "uplot.LICENSE").read_text()
    assert b"</script" not in (STATIC / "uplot.min.js").read_bytes() + (STATIC / "report.js").read_bytes()


# true to the rounds


def test_charts_hold_what_the_rounds_held(tmp_path):
    rounds = played.rounds(count=9, pools=2)
    data = shown(rounds, tmp_path).data
    assert data["x"] == list(range(9))  # as the log counts
    cpu = data["charts"][2]  # 0 is the overview, 1 the experience of the first task
    told = {line["label"]: line["y"] for line in cpu["lines"]}
    assert (cpu["title"], cpu["unit"]) == ("cpu", "cores")
    assert told["wanted"] == pytest.approx([r.tasks.demand[0, 0] / 1000 for r in rounds], rel=1e-3)
    assert told["granted"] == pytest.approx([r.allocation.granted[:2, 0].sum() / 1000 for r in rounds], rel=1e-3)
    assert told["delivered"] == pytest.approx([r.outcome.delivered[:2, 0].sum() / 1000 for r in rounds], rel=1e-3)
    felt = data["charts"][1]["lines"][0]["y"]
    assert felt == pytest.approx([r.outcome.experience[0] for r in rounds], rel=1e-3)
    assert cpu["events"] == [[2, 3, "×6"]]


def test_unmeasured_is_a_gap_in_the_line_and_is_said(tmp_path):
    page = shown(played.rounds(count=3, silent=(1,)), tmp_path)
    memory = next(c for c in page.data["charts"] if c["title"] == "memory")
    assert [line["y"] for line in memory["lines"] if line["label"] == "delivered"] == [[None] * 3]
    assert "memory unmeasured not throughout" in page.text
    assert "never reported social" in page.text
    assert "delivered not measured" in " ".join(page.named("div", "aria-label"))


def test_every_chart_has_words_and_a_table_of_its_numbers(tmp_path):
    page = shown(played.rounds(count=3, tasks=6), tmp_path)
    drawn = [int(i) for i in page.named("div", "data-chart")]
    tabled = [int(i) for ids in page.named("details", "data-table") for i in ids.split(",")]
    assert drawn == sorted(tabled) == list(range(len(page.data["charts"])))
    words = [a.get("aria-label") for _, a in page.tags if "data-chart" in a]
    assert all(w and len(w) > 10 for w in words)
    figures = [t for t, _ in page.tags if t in ("figure", "figcaption")]
    assert figures == ["figure", "figcaption"] * (len(figures) // 2)


def test_sums_are_those_of_the_rounds(tmp_path):
    rounds = played.rounds(count=5)
    page, s = shown(rounds, tmp_path), gather(rounds)
    felt = np.array([r.outcome.experience for r in rounds])
    misses = (felt < 0.8).sum(axis=0)
    for i, name in enumerate(rounds[0].tasks.name):
        row = f"{name} {rounds[0].tasks.kind[i]}, {played.ACCOUNTS[i % 2]} {felt[:, i].mean():.3f}"
        assert row in page.text
        assert f"{misses[i]} of 5" in page.text
    assert (
        f"studio 20.00 {s.moved['charge'][0]:,.2f} {s.moved['dividend'][0]:,.2f} {s.balance[-1, 0]:,.2f}" in page.text
    )
    assert "all 30.00" in page.text


def test_a_log_and_the_rounds_it_holds_make_the_same_page(tmp_path):
    path = small_log.small_log(tmp_path / "ledger.db", rounds=3)
    rounds = small_log.rounds(3)
    with Log.open(path) as log:
        assert report.page(gather(reading.rounds(log)), About("w")) == report.page(gather(rounds), About("w"))


def test_a_chart_says_the_mean_of_all_rounds_as_the_table_does(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "NUMBERS", 0)
    monkeypatch.setattr(charts, "POINTS", (7, 600))
    rounds = played.rounds(count=29)  # 5 to a point, the last point is of 4
    told = shown(rounds, tmp_path).data["charts"][0]["lines"]
    felt = np.array([r.outcome.experience for r in rounds])
    assert [line["mean"] for line in told] == pytest.approx(felt.mean(axis=0).tolist(), rel=1e-12)


def test_the_largest_surges_are_told_and_the_others_counted(tmp_path):
    def lead(*factors: float) -> str:
        rounds = played.rounds(count=2 * len(factors) + 1, surge=range(0))
        for k, factor in enumerate(factors):
            t = rounds[2 * k + 1].tasks
            surge = np.array([factor, 1, 1, 1])
            rounds[2 * k + 1] = replace(rounds[2 * k + 1], tasks=replace(t, surge=surge))
        return shown(rounds, tmp_path).text

    assert "ordinary load" not in lead()
    assert "smaller" not in lead(2.0, 3.0, 4.0)
    four = lead(2.0, 3.0, 4.0, 5.0)
    assert "up to 5 times its ordinary load in round 7" in four
    assert "up to 2 times" not in four
    assert "There was 1 smaller surge." in four
    assert "There were 2 smaller surges." in lead(2.0, 3.0, 4.0, 5.0, 6.0)


def test_who_enforced_what_is_said_by_resource(tmp_path):
    rounds = played.rounds(count=3)
    held = [replace(r, outcome=replace(r.outcome, enforcer=by)) for r, by in zip(rounds, ("cgroup1", "governor", "none"), strict=True)]  # fmt: skip
    text = shown(held, tmp_path).text
    assert "cpu counter yes cgroup1 (1 round), governor (1 round), nobody (1 round)" in text
    assert "memory unmeasured not throughout cgroup1 (1 round), nobody (2 rounds)" in text
    assert "cpu counter yes sim" in shown(rounds, tmp_path).text


def test_advice_is_never_taken_for_what_happened(tmp_path):
    rounds = played.rounds(count=2)
    assert "Advice only." in shown(rounds, tmp_path, advised=True).text
    assert "nothing was enforced" in shown(rounds, tmp_path, advised=True).text
    assert "dvice" not in shown(rounds, tmp_path).text


def test_an_aborted_round_is_shown_as_one(tmp_path):
    logged = []
    for r in played.rounds(count=4):
        at = f"{r.number}.000"
        logged.append(reading.LoggedRound(r.number, at, r.tasks, r.pools, r.market, r.balance, allocation=r.allocation))
        logged[-1].outcome, logged[-1].bills, logged[-1].balance = r.outcome, r.bills, r.balance
    logged[2].outcome = logged[2].bills = None
    logged[2].aborted = "KeyboardInterrupt"
    logged[3].allocation = logged[3].outcome = logged[3].bills = logged[3].balance = None  # still open
    page = shown(logged, tmp_path)
    assert page.data["x"] == [0, 1, 2]
    assert [2, 2, ""] in page.data["charts"][0]["events"]
    assert "round 2 not finished: KeyboardInterrupt" in page.text
    assert "1 round did not finish" in page.text


def test_floors_are_judged_by_what_was_granted(tmp_path):
    rounds = played.rounds(count=4)
    assert "floors none" in shown(rounds, tmp_path).text
    promised = [replace(r, tasks=replace(r.tasks, floor=r.allocation.served)) for r in rounds]
    assert "floors kept" in shown(promised, tmp_path).text
    promised[1] = replace(promised[1], tasks=replace(promised[1].tasks, floor=rounds[1].allocation.served + 1e-6))
    assert "floors 4 broken of 16 promised" in shown(promised, tmp_path).text


def test_a_policy_without_prices_charged_nothing_and_the_page_says_so(tmp_path):
    free = [
        replace(r, allocation=replace(r.allocation, price=r.allocation.price * 0), bills=played.bill(r.tasks.account, r.bills.paid * 0))
        for r in played.rounds(count=2)
    ]  # fmt: skip
    text = shown(free, tmp_path).text
    assert "Nothing was priced" in text
    assert "Nothing was charged, so no credit moved" in text


def test_how_to_verify_is_on_every_page(tmp_path):
    for rounds in ([], played.rounds(count=2)):
        page = shown(rounds, tmp_path, verify="apportion verify run7/ledger.db --key run7/operator.pub")
        assert "apportion verify run7/ledger.db --key run7/operator.pub" in page.text
    assert "No round was played" in shown([], tmp_path).text


def test_tasks_and_pools_that_come_and_go_keep_their_rows():
    a = played.rounds(count=2, names=("game", "social"))
    b = [replace(r, number=r.number + 2) for r in played.rounds(count=2, names=("assets", "game"), pools=2)]
    s = gather([*a, *b])
    assert s.task == ("game", "social", "assets")
    assert s.pool == ("pool-0", "pool-1")
    assert np.isnan(s.experience).tolist() == [[False, False, True]] * 2 + [[False, True, False]] * 2
    assert s.experience[2, 0] == b[0].outcome.experience[1]
    assert np.isnan(s.price[:, 1]).all(axis=1).tolist() == [True, True, False, False]


# long runs


@given(n=st.integers(1, 40), per=st.integers(1, 9), seed=st.integers(0, 2**32 - 1))
def test_thinning_keeps_means_and_extremes(n: int, per: int, seed: int):
    rng = np.random.default_rng(seed)
    x = np.where(rng.random((n, 2)) < 0.2, np.nan, rng.normal(size=(n, 2)))
    for k in range(0, n, per):
        part = x[k : k + per]
        for c in range(2):
            known = part[:, c][~np.isnan(part[:, c])]
            got = [thin(x, per, how)[k // per, c] for how in ("mean", "min", "max", "last")]
            want = [known.mean(), known.min(), known.max(), known[-1]] if len(known) else [np.nan] * 4
            assert got == pytest.approx(want, nan_ok=True)


def test_spells_are_the_rounds_above_an_ordinary_day():
    x = np.array([2.0, 1, 6, 3, 1, np.nan, 4])
    assert spells(x, np.arange(7) + 10) == [(10, 10, 2), (12, 13, 6), (16, 16, 4)]
    assert spells(np.ones(3), np.arange(3)) == []


def test_a_long_run_is_thinned_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "NUMBERS", 0)
    monkeypatch.setattr(charts, "POINTS", (7, 600))
    rounds = played.rounds(count=30)
    page = shown(rounds, tmp_path)
    assert page.data["per"] == 5  # 30 rounds in at most 7 points
    assert page.data["x"] == [0, 5, 10, 15, 20, 25]
    assert "Each point stands for 5 rounds" in page.text
    felt = [r.outcome.experience[0] for r in rounds]
    mean, low = (line["y"] for line in page.data["charts"][1]["lines"])
    assert mean[0] == pytest.approx(np.mean(felt[:5]), rel=1e-3)
    assert low[0] == pytest.approx(min(felt[:5]), rel=1e-3)


def test_many_tasks_open_those_worst_off_and_table_all(tmp_path):
    n = charts.CHARTED + 5
    page = shown(played.rounds(count=2, tasks=n), tmp_path)
    opened = [a for t, a in page.tags if t == "details" and a.get("class") == "task" and "open" in a]
    assert len(opened) == charts.OPEN
    assert "5 more have no charts" in page.text
    assert len([t for t, a in page.tags if t == "th" and a.get("scope") == "row"]) >= n
    means = [float(m) for m in re.findall(r"Experience ([0-9.]+) on average", page.text)]
    assert means == sorted(means)


def test_a_minute_of_demo_is_a_small_page(tmp_path):
    shown(played.rounds(count=60, resources=("cpu", "memory", "bandwidth", "storage")), tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 200_000


@pytest.mark.slow
def test_5000_rounds_of_50_tasks_are_one_page(tmp_path):
    resources = ("cpu", "memory", "bandwidth", "storage")
    shown(played.rounds(count=5000, tasks=50, pools=3, resources=resources), tmp_path)
    assert (tmp_path / "report.html").stat().st_size < 1_500_000


def test_a_disk_that_fails_leaves_the_old_page(tmp_path, monkeypatch):
    shown(played.rounds(count=1), tmp_path)
    old = (tmp_path / "report.html").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        shown(played.rounds(count=2), tmp_path)
    assert (tmp_path / "report.html").read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


# in a browser


def browse(path: Path, profile: Path, *flags: str) -> tuple[str, str]:
    """Give the page's DOM after its scripts ran, and what the browser logged."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("browser: no chromium on PATH")
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1", "--enable-logging=stderr"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=8000", *flags, "--dump-dom", path.as_uri()]
    run = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
    )
    try:
        return run.communicate(timeout=60)
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.communicate()


@pytest.mark.browser
@pytest.mark.parametrize("count", [0, 1, 12])
def test_a_browser_draws_every_chart_without_a_complaint_or_a_request(tmp_path, count):
    page = shown(played.rounds(count=count, names=NASTY, pools=2, silent=(1,)), tmp_path)
    net = tmp_path / "net.json"
    dom, log = browse(tmp_path / "report.html", tmp_path / "profile", f"--log-net-log={net}")
    drawn = Page(dom)
    assert len([1 for _, a in drawn.tags if "data-drawn" in a]) == len(page.data["charts"])
    assert len([1 for t, _ in drawn.tags if t == "canvas"]) == len(page.data["charts"])
    assert "data-ready" in dom
    assert "CONSOLE" not in log, log
    assert "<title>launch-day · apportion report</title>" in dom  # no name ran as a script
    assert asked(net) == set()


def asked(net: Path) -> set[str]:
    """What the page asked of the network. A browser's own questions (updates, the time) have no page behind them."""
    events = [e.get("params", {}) for e in json.loads(net.read_text())["events"]]
    urls = {p["url"] for p in events if "url" in p and p.get("initiator", "not an origin") != "not an origin"}
    return {u for u in urls if not u.startswith(("file:", "data:"))}


ACT = """
<script>
addEventListener("load", () => setTimeout(() => {
  const plot = document.querySelector("[data-chart='2']");
  const press = (key) => plot.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
  press("ArrowRight"); press("ArrowRight"); press("ArrowRight");
  const note = (name, text) => document.body.setAttribute("data-" + name, text);
  note("read", document.querySelector("[data-read='0']").textContent);
  note("spoken", document.getElementById("live").textContent);
  press("Escape");
  note("left", document.querySelector("[data-read='0']").textContent);
  const numbers = document.querySelector("[data-table='1,2,3']");
  numbers.open = true;
  setTimeout(() => note("table", numbers.querySelector("table").rows[3].textContent), 200);
}, 500));
</script></body>
"""


@pytest.mark.browser
def test_arrow_keys_read_one_round_in_all_charts_and_numbers_open_as_a_table(tmp_path):
    rounds = played.rounds(count=12)
    data = shown(rounds, tmp_path).data
    path = tmp_path / "report.html"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", path.read_text(encoding="utf-8"))
    path.write_text(text.replace("</body>", ACT), encoding="utf-8")
    dom, log = browse(path, tmp_path / "profile")
    (body,) = [a for t, a in Page(dom).tags if t == "body"]
    third = [[line["y"][2] for line in chart["lines"]] for chart in data["charts"][:4]]
    short = lambda y, form=".3g": "–" if y is None else f"{y:{form}}"  # noqa: E731
    assert body["data-read"].startswith("round 2 ")
    assert [short(y, ".3f") in body["data-read"] for y in third[0]] == [True] * 4
    assert body["data-spoken"] == "round 2: " + ", ".join(
        f"{what} {short(y)}" for what, y in zip(("wanted", "granted", "delivered"), third[2], strict=True)
    )
    assert body["data-left"].startswith("mean ")
    row = [short(y, ".3f") for y in third[1]] + [short(y) for ys in third[2:4] for y in ys]
    assert body["data-table"] == "2" + "".join(row)
    assert "CONSOLE" not in log, log


@pytest.mark.browser
def test_the_browser_test_would_notice(tmp_path):
    """A script with a fault, and a picture from elsewhere, are seen."""
    broken = tmp_path / "broken.html"
    broken.write_text("<title>x</title><img src='http://127.0.0.1:9/x.png'><script>throw new Error('fault')</script>")
    _, log = browse(broken, tmp_path / "profile", f"--log-net-log={tmp_path / 'net.json'}")
    assert "CONSOLE" in log
    assert "http://127.0.0.1:9/x.png" in asked(tmp_path / "net.json")
