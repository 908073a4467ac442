"""A real build: it is used only while it matches its sources, and behaves like the Python code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from l7proxy import compiled, compiled_build

REPOSITORY = compiled.PACKAGE.parent


def python(where: Path, *argv: str, **environment: str) -> str:
    """The output of a Python process that imports l7proxy from `where`."""
    env = {**os.environ, "PYTHONPATH": str(where), **environment}
    done = subprocess.run(
        [sys.executable, *argv], cwd=where, env=env, capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with its own build: the source tree stays unchanged."""
    where = tmp_path_factory.mktemp("compiled")
    rooms = [f"tests/unit/{room}" for room in ("flows", "gate", "proxy", "wire")]
    for name in ("l7proxy", "tproxy_rules", "tests/corpus", "tests/support", *rooms):
        shutil.copytree(REPOSITORY / name, where / name, ignore=shutil.ignore_patterns("__pycache__", "_compiled*"))
    shutil.copy(REPOSITORY / "pyproject.toml", where)
    python(where, "-m", "l7proxy.compiled_build")
    return where


SAY = "import l7proxy.gate.http1 as gate, l7proxy.compiled as c; print(c.word(), gate.__file__.rpartition('.')[2])"


@pytest.mark.skipif(bool(compiled_build.missing()), reason=compiled_build.missing())
class TestBuild:
    def test_it_is_used_and_can_be_left_unused(self, built: Path) -> None:
        assert python(built, "-c", SAY) == "compiled so\n"
        assert python(built, "-c", SAY, L7PROXY_PURE="1") == "pure Python py\n"

    def test_conversations_are_the_same(self, built: Path) -> None:
        argv = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0"]
        conversations = (
            "gate/test_http1_conversations.py",
            "gate/test_http2_conversations.py",
            "proxy/test_session.py",
        )
        tests = (*conversations, "flows/test_template.py")
        said = python(built, *argv, *(f"tests/unit/{one}" for one in tests))
        assert " passed" in said
        assert python(built, "-c", SAY) == "compiled so\n", "the tests ran on the build"

    def test_an_edit_is_never_masked(self, built: Path) -> None:
        source = built / "l7proxy" / "policy" / "decide.py"
        before = source.read_text()
        source.write_text(before + "\n# an edit\n")
        try:
            assert python(built, "-c", SAY) == "pure Python py\n"
        finally:
            source.write_text(before)
        added = built / "l7proxy" / "wire" / "added.py"
        added.write_text("")
        try:
            assert python(built, "-c", SAY) == "pure Python py\n"
        finally:
            added.unlink()
        assert python(built, "-c", SAY) == "compiled so\n"
