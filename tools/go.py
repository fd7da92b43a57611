"""Set up and run apportion from a fresh clone, with nothing but Python 3.11+ and a package registry.

    python tools/go.py demo      the launch day on this machine, about a minute; set-up without torch
    python tools/go.py test      the tests, but those marked slow, gpu, browser, node or ray; set-up with torch
    python tools/go.py test-all  every test; a skip is a failure unless ALLOW_SKIP=gpu,cgroup2 allows it
    python tools/go.py lint      ruff and pyright
    python tools/go.py clean     remove .venv, caches and builds; out/ and its ledgers stay

    --cpu      take torch's CPU build (0.2 GB instead of 2.7 GB on Linux) from PyTorch's own index
    -- ARGS    what follows goes to `apportion demo` or to pytest

What is set up is noted in .venv/set-up.json, last of all: a set-up that was cut short is done again, one that
holds costs a read. Standard library only, in syntax that Python 3.7 reads, so that an old Python can say it is old.
"""

from __future__ import annotations

import argparse
import glob
import hashlib
import itertools
import json
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

OLDEST = (3, 11)
HOUSE = Path(__file__).resolve().parent.parent
VENV = HOUSE / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "set-up.json"
LOG = VENV / "set-up.log"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"  # PyTorch's own; asked only where --cpu is given
BEAT = 2.5  # seconds of silence after which we say what is going on
START = time.monotonic()
WAYS_OUT = {  # signs in what a failed step said -> what to do about it; the first that fits
    r"No space left|quota exceeded|Errno 28": (
        "The disk is full: {free:.1f} GB left at {house}. A set-up takes 0.4 GB without torch and 1.5 GB with its CPU"
        " build, and as much again while it unpacks. Make room (TMPDIR=FOLDER unpacks elsewhere) and run again."
    ),
    r"CERTIFICATE_VERIFY_FAILED|SSLError": (
        "The package index showed a certificate that this Python does not trust. Behind a proxy that opens TLS, name"
        " its authority: PIP_CERT=/path/to/ca.pem"
    ),
    r"NewConnection|name resolution|unreachable|timed out|TimeoutError|Connection (refused|aborted)|ProxyError": (
        "The package index did not answer. Check the network; a mirror is named by PIP_INDEX_URL=URL, a folder of"
        " wheels by PIP_FIND_LINKS=FOLDER. Then run again: what was downloaded is kept."
    ),
    r"No matching distribution": (
        "The package index has no such package for Python {python} on {platform}. With another Python:"
        " rm -r .venv, then make PYTHON=python3.12 (or python3.12 tools/go.py)."
    ),
    r"Permission denied": "{house} cannot be written: clone into a folder of your own.",
}


class Stop(Exception):
    """Set-up cannot go on; the message says why and what to do."""


def say(text: str) -> None:
    print(f"[{time.monotonic() - START:5.1f} s] {text}", flush=True)


def main(argv: list[str]) -> int:
    ours, rest = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(
        "go.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS
    )
    parser.add_argument("what", choices=["demo", "test", "test-all", "lint", "clean"], help=argparse.SUPPRESS)
    parser.add_argument("--cpu", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(ours)
    try:
        check_machine(argv)
        if asked.what == "clean":
            return clean()
        set_up([] if asked.what == "demo" else ["dev"] if asked.what == "lint" else ["dev", "learn"], asked.cpu)
        if asked.what == "lint":
            return lint()
        program = {
            "demo": [VENV / "bin" / "apportion", "demo"],
            "test": [PYTHON, "-m", "pytest"],
            "test-all": [PYTHON, "-m", "pytest", "-m", "", "--no-skips"],  # the last -m wins over pyproject's
        }[asked.what]
        command = [str(word) for word in program] + rest
        say(f"starting {program[0].name} {shlex.join(command[1:])}")
        os.chdir(str(HOUSE))
        os.execv(command[0], command)
    except Stop as stop:
        print(f"\ngo: {stop}", file=sys.stderr)
    except KeyboardInterrupt:
        print("\ngo: stopped. Run the same command again: what was downloaded is kept.", file=sys.stderr)
        return 130
    return 1


def check_machine(argv: list[str]) -> None:
    """Refuse what cannot work before anything is made; hand over to a newer Python where there is one."""
    if os.name != "posix":
        raise Stop("apportion drives processes the POSIX way. On Windows, run it inside WSL 2.")
    if sys.version_info < OLDEST:
        here = ".".join(map(str, sys.version_info[:2]))
        for name in ("python3.14", "python3.13", "python3.12", "python3.11"):
            if shutil.which(name) and subprocess.call([name, "-c", ""], stderr=subprocess.DEVNULL) == 0:
                say(f"{sys.executable} is Python {here}: taking {name}")
                os.execvp(name, [name, __file__, *argv])
        raise Stop(f"Python 3.11 or newer is needed; {sys.executable} is {here}, and no newer one is on the PATH.")
    # Debian and Ubuntu ship Python without these two; what `python -m venv` says of it is easily missed.
    from importlib.util import find_spec

    if not (find_spec("venv") and find_spec("ensurepip")):
        package = f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"
        raise Stop(f"{sys.executable} lacks venv or ensurepip. On Debian and Ubuntu: sudo apt install {package}")


def set_up(extras: list[str], cpu: bool) -> None:
    """Make .venv hold apportion with these extras; where it already does, only look."""
    stamp = read_stamp()
    holds = stamp.get("for") == fingerprint() and (VENV / "bin" / "apportion").exists()
    had = stamp["extras"] if holds else []
    if holds and set(extras) <= set(had):
        return
    try:
        make_venv(moved=stamp.get("for", {}).get("house", str(HOUSE)) != str(HOUSE))
        STAMP.unlink() if STAMP.exists() else None  # from here until it is written again, nothing is promised
        LOG.write_text("")
        torch = choose_torch(cpu) if "learn" in extras else []
        what = f".[{','.join(extras)}]" if extras else "."
        say(f"installing apportion {'with ' + ' and '.join(extras) if extras else 'without torch'}")
        install("-e", what, *torch)
        note = {"for": fingerprint(), "extras": sorted(set(extras) | set(had))}
        fresh = STAMP.with_suffix(".new")
        fresh.write_text(json.dumps(note, indent=1))
        os.replace(str(fresh), str(STAMP))
    except OSError as error:
        raise Stop(f"{error.strerror}: {error.filename or VENV}. {advice(error.strerror or '')}") from error
    say("set up; next time this step is a look at .venv/set-up.json")


def read_stamp() -> dict:
    try:
        return json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return {}


def fingerprint() -> dict:
    """What a set-up depends on: where the house stands, which Python, and what pip reads of pyproject.toml."""
    import tomllib  # here, because an older Python must get as far as saying that it is too old

    project = tomllib.loads((HOUSE / "pyproject.toml").read_text())
    read = [project.get("build-system"), project.get("project"), project.get("tool", {}).get("hatch")]
    config = VENV / "pyvenv.cfg"
    return {
        "house": str(HOUSE),  # a moved .venv has scripts that point to where it was
        "python": [os.path.realpath(str(PYTHON)), config.read_text() if config.exists() else ""],
        "project": hashlib.sha256(json.dumps(read, sort_keys=True).encode()).hexdigest(),
    }


def make_venv(moved: bool) -> None:
    """Make .venv where there is none, or where the one that is there cannot be used."""
    probe = "import sys, importlib.util as u; print(sys.version_info >= (3, 11), bool(u.find_spec('pip')))"
    try:
        told = subprocess.run([str(PYTHON), "-c", probe], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
    except OSError:
        told = b""
    new_enough, has_pip = [*told.decode().split(), "", ""][:2]
    if new_enough == "True" and not moved:
        if has_pip != "True":  # as `uv venv` leaves it
            say("adding pip to .venv")
            follow("unpacking pip", [str(PYTHON), "-m", "ensurepip"])
        return
    why = "it was moved here" if moved else "its Python is gone or too old"
    say(f"making .venv{f' again: {why}' if VENV.exists() else ''} with Python {sys.version.split()[0]}")
    follow("unpacking pip", [sys.executable, "-m", "venv", "--clear", str(VENV)])


def pip(*words: str) -> list[str]:
    return [str(PYTHON), "-m", "pip", "--disable-pip-version-check", "--no-input", *words]


def install(*words: str) -> None:
    """Install, telling what comes. Python compiles what it uses at first use, unless it may not keep the result."""
    lazily = [] if os.environ.get("PYTHONDONTWRITEBYTECODE") else ["--no-compile"]
    follow("asking the package index", pip("install", "--progress-bar", "off", *lazily, *words))


def choose_torch(cpu: bool) -> list[str]:
    """Say which torch is coming before it comes; give what pip must be told so that it is the CPU build if it can be.

    We ask `pip index versions`, which honours the caller's indexes and downloads nothing. `pip install --dry-run`
    would know more, but fetches all 2.7 GB to find out wherever the index does not serve metadata apart.
    """
    version = re.findall(r'"torch==([0-9.]+)"', (HOUSE / "pyproject.toml").read_text())[0]
    there = glob.glob(str(VENV / "lib" / "python*" / "site-packages" / f"torch-{version}*.dist-info"))
    if there or sys.platform != "linux":  # elsewhere the plain build is the CPU build
        return []
    build = f"torch=={version}+cpu"
    say(f"asking your package index which builds of torch {version} it has")
    known = offered()
    if f"{version}+cpu" in known:
        say(f"torch {version}: your package index offers the CPU build (0.2 GB); taking it")
        return [build]
    if not cpu:
        why = "has only the build for GPUs" if known else "does not say what it has"
        say(f"torch {version}: THIS {'WILL' if known else 'MAY'} DOWNLOAD ABOUT 2.7 GB: your package index {why}.")
        say("  To take the CPU build (0.2 GB) from PyTorch's own index instead, stop this now (Ctrl-C) and run")
        say(f"  make test CPU=1, or: python tools/go.py test --cpu. It comes from {CPU_INDEX}")
        return []
    say(f"torch {version}: asking {CPU_INDEX} for the CPU build")
    if f"{version}+cpu" not in offered("--index-url", CPU_INDEX):
        raise Stop(
            f"{CPU_INDEX} does not answer, or has no torch {version} for this Python. Nothing large was downloaded.\n"
            "Run again without --cpu to take the 2.7 GB build, or put a CPU wheel in a folder: PIP_FIND_LINKS=FOLDER."
        )
    # Apart and without dependencies, so that everything else still comes from the caller's own index.
    install("--no-deps", "--index-url", CPU_INDEX, build)
    return [build]


def offered(*options: str) -> set[str]:
    """Give the versions of torch that pip would choose from; none if it gets no answer in some seconds."""
    command = pip("index", "versions", "torch", "--timeout", "5", "--retries", "1", *options)
    asked = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=str(HOUSE))
    listed = re.search(r"Available versions: (.*)", asked.stdout.decode(errors="replace"))
    return set(listed.group(1).split(", ")) if listed else set()


def follow(doing: str, command: list[str]) -> None:
    """Run a command; tell its steps as they come, never be silent for long, and explain a failure."""
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=str(HOUSE),
        universal_newlines=True, errors="replace", env=dict(os.environ, PIP_USER="0", PYTHONUNBUFFERED="1"),
    )  # fmt: skip
    lines = queue.Queue()
    threading.Thread(
        target=lambda: [lines.put(x) for x in itertools.chain(child.stdout or [], [None])], daemon=True
    ).start()
    seen, goal = [], 0
    before = len(installed())
    try:
        while True:
            try:
                line = lines.get(timeout=BEAT)
            except queue.Empty:
                done = len(installed()) - before
                say(f"  still {doing}" + (f": {done} of {goal} in place" if goal else ""))
                continue
            if line is None:
                break
            seen.append(line)
            step = worth_telling(line)
            if step:
                doing, goal = step, line.count(",") + 1 if line.startswith("Installing collected") else 0
                say("  " + step)
        code = child.wait()
    finally:
        if child.poll() is None:  # Ctrl-C reached us; let nothing go on behind the prompt
            child.terminate()
            child.wait()
    if LOG.parent.exists():
        try:
            with LOG.open("a") as log:
                log.writelines(seen)
        except OSError:
            pass  # the disk is full: `advice` is about to say so
    if code:
        last = "".join(f"  | {line.rstrip()[:160]}\n" for line in seen[-5:])
        raise Stop(f"{doing} failed; its last words:\n{last}{advice(''.join(seen))}\nAll it said: {LOG}")


def installed() -> list[str]:
    return glob.glob(str(VENV / "lib" / "python*" / "site-packages" / "*.dist-info"))


def worth_telling(line: str) -> str | None:
    """Give a line of pip's in our words, or nothing: one line per package, and whatever takes time."""
    package = re.match(r"(?:Collecting |Processing \S*/)([A-Za-z0-9_.]+(?:-(?!\d)[A-Za-z0-9_.]+)*)", line)
    if package:
        return f"collecting {package.group(1)}"
    if line.startswith("Installing collected packages:"):
        return f"installing {line.count(',') + 1} packages"
    if "Retrying (" in line:
        return "the package index does not answer; pip tries again"
    size = re.match(r"\s*Downloading (?:\S*/)?(\S+?)-(\d[^\s-]*)\S* \(([0-9.]+) ([MG])B\)", line)
    if size and (size.group(4) == "G" or float(size.group(3)) >= 10):
        return "downloading {} {}, {} {}B".format(*size.groups())  # all of a wheel's name is wider than a terminal
    if line.strip() == "Installing build dependencies: started":
        return "fetching what builds apportion"
    return None


def advice(told: str) -> str:
    """Give the way out of a failed step, from what it said."""
    free, version = shutil.disk_usage(str(HOUSE)).free / 1e9, ".".join(map(str, sys.version_info[:2]))
    for signs, way_out in WAYS_OUT.items():
        if re.search(signs, told):
            return way_out.format(house=HOUSE, free=free, platform=sys.platform, python=version)
    return "Running again may help: what was downloaded is kept."


def lint() -> int:
    """Format, lint and types, all three even if one complains."""
    worst = 0
    for words in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pyright", "--pythonpath", str(PYTHON)]):
        say(" ".join(words))
        worst = max(worst, subprocess.call([str(VENV / "bin" / words[0]), *words[1:]], cwd=str(HOUSE)))
    return worst


def clean() -> int:
    """Remove what can be made again. out/ holds ledgers and keys, which cannot."""
    doomed = [VENV] + [HOUSE / name for name in (".pytest_cache", ".ruff_cache", ".hypothesis", "build", "dist")]
    doomed += [found for top in ("src", "tests", "tools") for found in (HOUSE / top).rglob("__pycache__")]
    for path in doomed:
        if path.is_symlink():
            path.unlink()
        elif path.exists():
            say(f"removing {path.relative_to(HOUSE)}")
            shutil.rmtree(str(path))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
