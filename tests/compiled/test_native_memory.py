"""The native modules under AddressSanitizer and UndefinedBehaviorSanitizer: no byte outside of what they are given."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from l7proxy import compiled, compiled_build

REPOSITORY = compiled.PACKAGE.parent
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g", "-O1")
BUILD = """
import sys
from pathlib import Path
from l7proxy import compiled_build
scratch = Path(sys.argv[1])
compiled_build.compile_into(scratch / "made", compiled_build.native(scratch, *sys.argv[2:]), scratch)
"""
RUN = """
import sys
from pathlib import Path
from l7proxy import compiled
home = Path(sys.argv[1])
files = {f"l7proxy.{file.parent.name}.{file.name.partition('.')[0]}": file for file in home.rglob("*.so")}
sys.meta_path.insert(0, compiled._Finder(files))
from l7proxy.wire import http1_usual
assert http1_usual.__file__.endswith(".so"), http1_usual.__file__
"""
READS = """
import random
from tests.unit.wire import mutants, test_differential
seen = test_differential.long_run(20_000, seed=5)
assert seen["request fast"] > 1000 and seen["response fast"] > 1000, seen
for seed in range(300):
    asked, answer = mutants.request(random.Random(seed).randrange), mutants.response(random.Random(seed).randrange)
    for cut in range(len(asked)):
        http1_usual.request(asked[:cut])
    for cut in range(len(answer)):
        http1_usual.response(answer[:cut])
print("read")
"""
OVERRUN = """
http1_usual.overrun(b"GET")
print("read")
"""
PLANTED = '''

def overrun(bytes data not None):
    """A byte far behind the end."""
    return (<Bytes> PyBytes_AS_STRING(data))[len(data) + 2]
'''


def library(name: str) -> str:
    """The path of a library of the compiler's, or "" when it has none."""
    said = subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()
    return said if os.sep in said else ""


def run(where: Path, script: str, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(where), "L7PROXY_PURE": "1", **environment}
    command = [sys.executable, "-c", dedent(script), *argv]
    return subprocess.run(command, cwd=where, env=env, capture_output=True, text=True, timeout=280, check=False)


def sanitized(where: Path, script: str, home: Path) -> subprocess.CompletedProcess[str]:
    """PYTHONMALLOC: each object is an allocation of its own, with a zone behind it that may not be read."""
    preload = f"{library('libasan.so')} {library('libubsan.so')}"
    return run(
        where,
        RUN + script,
        str(home),
        LD_PRELOAD=preload,
        PYTHONMALLOC="malloc",
        ASAN_OPTIONS="detect_leaks=0:abort_on_error=0",
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("l7proxy", "tproxy_rules", "tests"):
        left_out = shutil.ignore_patterns("__pycache__", "_compiled*")
        shutil.copytree(REPOSITORY / name, tmp_path / "tree" / name, ignore=left_out)
    return tmp_path / "tree"


def build(tree: Path, scratch: Path) -> Path:
    done = run(tree, BUILD, str(scratch), *SANITIZERS)
    assert done.returncode == 0, done.stderr
    return scratch / "made"


@pytest.mark.skipif(bool(compiled_build.missing()), reason=compiled_build.missing())
class TestNativeMemory:
    @pytest.fixture(autouse=True)
    def needs_sanitizers(self) -> None:
        if not library("libasan.so") or not library("libubsan.so"):
            pytest.skip("the C compiler has no sanitizers")

    def test_no_byte_outside_of_the_input_is_read(self, tree: Path, tmp_path: Path) -> None:
        done = sanitized(tree, READS, build(tree, tmp_path / "scratch"))
        assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr[-4000:]

    def test_an_overrun_is_found(self, tree: Path, tmp_path: Path) -> None:
        """The control: without it, the test above could pass because nothing is watched."""
        source = tree / "l7proxy" / "wire" / "http1_usual.pyx"
        source.write_text(source.read_text() + PLANTED)
        done = sanitized(tree, OVERRUN, build(tree, tmp_path / "scratch"))
        assert done.returncode != 0 and "heap-buffer-overflow" in done.stderr, done.stderr[-4000:]
