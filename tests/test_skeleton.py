"""The promises of the files around the code: what `make` runs, what gets installed."""

import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
REQUIREMENTS = [*PROJECT["project"]["dependencies"], *EXTRAS["cuda"], *EXTRAS["dev"]]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the Makefile, and a stand-in for Python that writes down how it is called."""
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").write_text("")
    fake = tmp_path / "fake-python"
    fake.write_text(
        '#!/bin/sh\necho "$*" >> "$CALLS"\n'
        'if [ "$2" = venv ]; then for last; do :; done; mkdir -p "$last/bin"; cp "$0" "$last/bin/python"; fi\n'
    )
    fake.chmod(0o755)
    return tmp_path


def make(clone: Path, *arguments: str) -> list[str]:
    """The calls of Python that `make` made."""
    calls = clone / "calls"
    calls.write_text("")
    environment = {"PATH": "/usr/bin:/bin", "CALLS": str(calls)}
    subprocess.run(["make", "PYTHON=./fake-python", *arguments], cwd=clone, env=environment, check=True)
    return calls.read_text().splitlines()


def installs(calls: list[str]) -> list[str]:
    return [call for call in calls if "pip install" in call]


def test_demo_installs_once_and_serves_on_7860(clone):
    first = make(clone, "demo")
    assert installs(first) == ["-m pip install --editable ."]
    assert first[-1] == "app.py --host 127.0.0.1 --port 7860"
    assert make(clone, "demo") == first[-1:]


def test_the_tests_bring_what_the_demo_needs(clone):
    assert installs(make(clone, "test")) == ["-m pip install --editable .[dev]"]
    assert installs(make(clone, "demo")) == []


def test_a_change_of_the_requirements_installs_again(clone):
    make(clone, "test")
    stamp = (clone / ".venv" / ".installed-dev").stat().st_mtime
    os.utime(clone / "pyproject.toml", (stamp + 10, stamp + 10))
    assert len(installs(make(clone, "test"))) == 1


def test_a_missing_python_is_named(clone):
    run = subprocess.run(["make", "PYTHON=no-such-python", "demo"], cwd=clone, capture_output=True, text=True)
    assert run.returncode != 0
    assert "needs Python 3.11 or newer; 'no-such-python' was not found" in run.stdout
    assert not (clone / ".venv").exists()


def test_an_old_python_is_named(clone):
    old = clone / "old-python"
    pretend = "import sys; sys.version_info = (3, 9, 2); exec(sys.argv[1])"
    old.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{pretend}' \"$2\"\n")
    old.chmod(0o755)
    run = subprocess.run(["make", "PYTHON=./old-python", "demo"], cwd=clone, capture_output=True, text=True)
    assert run.returncode != 0
    assert "needs Python 3.11 or newer; ./old-python is 3.9" in run.stderr
    assert not (clone / ".venv").exists()


@pytest.mark.parametrize("requirement", REQUIREMENTS)
def test_requirements_have_a_lower_and_an_upper_bound(requirement):
    assert re.fullmatch(r"[A-Za-z0-9_-]+>=[\d.]+,<[\d.]+", requirement)


def test_the_installed_libraries_are_within_the_bounds():
    for requirement in map(Requirement, PROJECT["project"]["dependencies"]):
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            pytest.fail(f"{requirement.name} is asked for by pyproject.toml and not installed: run make test")
        assert requirement.specifier.contains(installed, prereleases=True), (requirement, installed)


def test_ci_runs_make_test_and_stops_at_the_first_failure():
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert script[0] == "#!/usr/bin/env bash"
    assert "set -euo pipefail" in script
    assert script[-1] == "make test"
