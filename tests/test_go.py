"""Set-up is one script: it says what it does, does it once, and explains what stops it."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

# A house with nothing to download, and a build backend in its own folder, so that the whole of set-up runs without a network.
TINY_PYPROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "apportion"
version = "1"
"""
TINY_BACKEND = """
import pathlib, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    name, info = "apportion-1-py3-none-any.whl", "apportion-1.dist-info/"
    with zipfile.ZipFile(pathlib.Path(folder) / name, "w") as wheel:
        wheel.writestr("apportion.pth", str(pathlib.Path(__file__).parent))
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: apportion\\nVersion: 1\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "entry_points.txt", "[console_scripts]\\napportion = tiny:main\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""


@pytest.fixture
def go(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tools/go.py as a module, set up over the Python that runs the tests."""
    spec = importlib.util.spec_from_file_location("go", root / "tools" / "go.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "PYTHON", Path(sys.executable))
    return module


@pytest.fixture
def house(root: Path, tmp_path: Path) -> Path:
    """A tiny house with our own script in it."""
    home = tmp_path / "house"
    (home / "tools").mkdir(parents=True)
    shutil.copy(root / "tools" / "go.py", home / "tools")
    (home / "pyproject.toml").write_text(TINY_PYPROJECT)
    (home / "backend.py").write_text(TINY_BACKEND)
    (home / "tiny.py").write_text("import sys\ndef main():\n    print('played', *sys.argv[1:])\n")
    return home


def run(home: Path, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(home / "tools" / "go.py"), *words],
        env=os.environ | more,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_set_up_is_done_once_and_again_when_it_no_longer_holds(house: Path):
    first = run(house, "demo", "--", "--rounds", "3", PIP_NO_INDEX="1")
    assert first.returncode == 0, first.stderr
    assert "making .venv with" in first.stdout
    assert "installing apportion without torch" in first.stdout
    assert first.stdout.endswith("played demo --rounds 3\n")

    def steps() -> str:
        done = run(house, "demo", PIP_NO_INDEX="1")
        assert done.stdout.endswith("played demo\n"), done.stderr
        return done.stdout

    assert "making" not in (second := steps())
    assert "installing" not in second

    (house / "pyproject.toml").write_text(TINY_PYPROJECT + "# a comment changes nothing\n")
    assert "installing" not in steps()
    (house / "pyproject.toml").write_text(TINY_PYPROJECT + 'description = "asks for something else"\n')
    assert "installing" in steps()

    (house / ".venv" / "set-up.json").unlink()  # as when it was cut short
    assert "making" not in (again := steps())
    assert "installing" in again

    house = house.rename(house.with_name("moved"))
    assert "making .venv again: it was moved here" in steps()
    (house / ".venv" / "bin" / "python").unlink()
    assert "making .venv again: its Python is gone" in steps()


@pytest.mark.slow
def test_no_network_is_explained_and_mended_by_running_again(house: Path):
    needy = TINY_PYPROJECT + 'dependencies = ["numpy"]\n'
    (house / "backend.py").write_text(TINY_BACKEND.replace("Version: 1\\n", "Version: 1\\nRequires-Dist: numpy\\n"))
    (house / "pyproject.toml").write_text(needy)
    nowhere = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_EXTRA_INDEX_URL": "", "PIP_FIND_LINKS": ""}
    stuck = run(house, "demo", PIP_CONFIG_FILE=os.devnull, PIP_RETRIES="1", **nowhere)
    assert stuck.returncode == 1
    assert "The package index did not answer." in stuck.stderr
    assert "PIP_INDEX_URL" in stuck.stderr
    assert not (house / ".venv" / "set-up.json").exists()

    (house / "backend.py").write_text(TINY_BACKEND)  # the network is back: nothing is missing any more
    assert run(house, "demo", PIP_NO_INDEX="1").stdout.endswith("played demo\n")


def test_an_old_python_can_read_that_it_is_old(root: Path):
    ast.parse((root / "tools" / "go.py").read_text(), feature_version=(3, 7))


def test_an_old_python_is_refused(go: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(go.sys, "version_info", (3, 9, 1, "final", 0))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(go.Stop, match=r"Python 3\.11 or newer is needed; .* is 3\.9"):
        go.check_machine([])


def test_a_python_without_venv_is_refused(go: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(go.Stop, match=r"sudo apt install python3\.\d+-venv"):
        go.check_machine([])


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("Collecting numpy>=1.26 (from apportion==0.1.0)", "collecting numpy"),
        ("Processing /wheels/scipy-1.17.1-cp311-cp311-manylinux_2_28_x86_64.whl (from apportion)", "collecting scipy"),
        ("Processing /wheels/typing_extensions-4.16.0-py3-none-any.whl", "collecting typing_extensions"),
        ("  Downloading https://x/torch-2.13.0-cp311-cp311-manylinux_2_28_x86_64.whl (526.6 MB)", "downloading torch 2.13.0, 526.6 MB"),
        ("  Downloading rfc8785-0.1.4-py3-none-any.whl (9.2 kB)", None),
        ("Installing collected packages: a, b, c", "installing 3 packages"),
        ("WARNING: Retrying (Retry(total=4)) after connection broken", "the package index does not answer; pip tries again"),
        ("Requirement already satisfied: numpy", None),
    ],
)  # fmt: skip
def test_pip_is_told_in_our_words(go: ModuleType, line: str, told: str | None):
    assert go.worth_telling(line) == told


@pytest.mark.parametrize(
    ("said", "way_out"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "The disk is full"),
        ("NewConnectionError('...: Failed to establish a new connection: [Errno -3] ...')", "PIP_INDEX_URL"),
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] ...'))", "PIP_CERT"),
        ("ERROR: No matching distribution found for torch==2.13.0", "PYTHON=python3.12"),
        ("something new", "Running again may help"),
    ],
)
def test_a_failure_comes_with_a_way_out(go: ModuleType, said: str, way_out: str):
    assert way_out in go.advice(said)


def index(folder: Path, *versions: str) -> str:
    """Write a package index that offers these versions of torch; give its address."""
    page = folder / "torch" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("".join(f'<a href="torch-{v}-py3-none-any.whl">torch-{v}-py3-none-any.whl</a>' for v in versions))
    return folder.as_uri()


@pytest.fixture
def asked(go: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Choose torch for a new .venv on Linux, with only these versions on offer."""
    pytest.importorskip("pip", reason="pip: this environment has none")

    def choose(offered: list[str], cpu_index: list[str], cpu: bool) -> list[str]:
        monkeypatch.setattr(go, "VENV", tmp_path)
        monkeypatch.setattr(go.sys, "platform", "linux")
        monkeypatch.setattr(go, "CPU_INDEX", index(tmp_path / "theirs", *cpu_index))
        for name, value in {"INDEX_URL": index(tmp_path / "ours", *offered), "CONFIG_FILE": os.devnull}.items():
            monkeypatch.setenv(f"PIP_{name}", value)
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
        monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
        monkeypatch.setattr(go, "install", lambda *words: go.say(f"pip install {' '.join(words)}"))
        return go.choose_torch(cpu)

    return choose


def test_a_cpu_build_on_offer_is_taken(asked, capsys: pytest.CaptureFixture[str]):
    assert asked(["2.13.0", "2.13.0+cpu", "2.13.0+cu130"], [], cpu=False) == ["torch==2.13.0+cpu"]
    assert "GB" in capsys.readouterr().out


def test_gigabytes_are_announced_before_they_come(asked, capsys: pytest.CaptureFixture[str]):
    assert asked(["2.13.0"], ["2.13.0+cpu"], cpu=False) == []
    told = capsys.readouterr().out
    assert "THIS WILL DOWNLOAD ABOUT 2.7 GB" in told
    assert "--cpu" in told
    assert "pip install" not in told
    assert asked([], [], cpu=False) == []
    assert "THIS MAY DOWNLOAD ABOUT 2.7 GB" in capsys.readouterr().out


def test_asking_for_the_cpu_build_takes_torch_alone_from_its_index(asked, capsys: pytest.CaptureFixture[str]):
    assert asked(["2.13.0"], ["2.13.0+cpu"], cpu=True) == ["torch==2.13.0+cpu"]
    assert "pip install --no-deps --index-url" in capsys.readouterr().out


def test_gigabytes_never_come_in_place_of_a_cpu_build_that_was_asked_for(go: ModuleType, asked):
    with pytest.raises(go.Stop, match="Nothing large was downloaded"):
        asked(["2.13.0"], [], cpu=True)


def test_torch_is_pinned_in_one_place(go: ModuleType, root: Path):
    assert "torch==2.13.0" in (root / "pyproject.toml").read_text()
    assert "2.13" not in (root / "tools" / "go.py").read_text()


def test_clean_keeps_the_ledgers(house: Path):
    for made in (".venv/bin/python", ".hypothesis/x", "src/apportion/__pycache__/x.pyc", "out/ledger.db"):
        (house / made).parent.mkdir(parents=True)
        (house / made).touch()
    assert run(house, "clean").returncode == 0
    assert (house / "out" / "ledger.db").exists()
    assert not any((house / gone).exists() for gone in (".venv", ".hypothesis", "src/apportion/__pycache__"))


def test_make_is_a_shorter_spelling(root: Path):
    if not shutil.which("make"):
        pytest.skip("make: not on this machine")
    words = ["make", "--no-print-directory", "-n", "test", "CPU=1", "ARGS=-k floors", "PYTHON=python3"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}  # we may run under make
    told = subprocess.run(words, cwd=root, env=env, capture_output=True, text=True, check=True).stdout
    assert told.split() == ["python3", "tools/go.py", "test", "--cpu", "--", "-k", "floors"]


SKIPPING = """
import pytest
def test_runs(): pass
def test_needs_a_tree(): pytest.skip("cgroup2: no unified tree")
@pytest.mark.gpu
def test_needs_a_card(): pytest.skip("card: none")
def test_gives_no_word(): pytest.skip("not today")
"""


@pytest.mark.parametrize(
    ("options", "allow", "outcome", "says"),
    [
        ([], "", "1 passed, 3 skipped", "no unified tree"),
        (["--no-skips"], "", "3 failed, 1 passed", "To allow it: ALLOW_SKIP=cgroup2"),
        (["--no-skips"], "gpu,cgroup2", "1 failed, 1 passed, 2 skipped", "Let its reason begin with a word"),
        (["--no-skips"], "gpu, cgroup2", "1 failed", "test_skipping.py::test_needs_a_card (card: none)"),
    ],
)
def test_a_skip_is_a_failure_unless_allowed(
    root: Path, tmp_path: Path, options: list[str], allow: str, outcome: str, says: str
):
    shutil.copy(root / "tests" / "conftest.py", tmp_path)
    (tmp_path / "test_skipping.py").write_text(SKIPPING)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = gpu: needs an accelerator\n")
    words = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider", *options, str(tmp_path)]
    env = os.environ | {"ALLOW_SKIP": allow}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert outcome in done.stdout.splitlines()[-1]
    assert says in done.stdout
