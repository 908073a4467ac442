"""Which builds are accepted. tests/compiled tests that a build works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from l7proxy import compiled, compiled_build


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"python": "2.7", "sources": {}}'])
def test_a_broken_build_is_no_build(tmp_path: Path, manifest: str) -> None:
    (tmp_path / compiled.MANIFEST).write_text(manifest)
    assert not compiled.is_true(tmp_path)


def test_every_module_that_is_compiled_is_watched() -> None:
    assert {f"{module}.py" for module in compiled_build.MODULES} <= set(compiled.sources())
    assert {f"{module}.pyx" for module in compiled_build.NATIVE} <= set(compiled.sources())


def test_a_build_is_found_where_importlib_util_was_not_imported_before(tmp_path: Path) -> None:
    """`python -S`, as in a container image without site packages: the finder itself must work without site."""
    (tmp_path / compiled.MANIFEST).write_text(json.dumps({"python": sys.version, "sources": compiled.sources()}))
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from l7proxy import compiled
sys.modules.pop("importlib.util", None)
compiled.use(Path(sys.argv[2]))
import l7proxy.errors
print(compiled.word())
"""
    command = [sys.executable, "-S", "-c", script, str(compiled.PACKAGE.parent), str(tmp_path)]
    environment = {**os.environ, "L7PROXY_PURE": ""}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout == "compiled\n", done.stderr
