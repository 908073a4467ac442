"""What counts as a build. That one works: tests/compiled."""

from __future__ import annotations

from pathlib import Path

import pytest

from l7proxy import compiled, compiled_build


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"python": "2.7", "sources": {}}'])
def test_a_broken_build_is_no_build(tmp_path: Path, manifest: str) -> None:
    (tmp_path / compiled.MANIFEST).write_text(manifest)
    assert not compiled.is_true(tmp_path)


def test_every_module_that_is_compiled_is_watched() -> None:
    assert {f"{module}.py" for module in compiled_build.MODULES} <= set(compiled.sources())
