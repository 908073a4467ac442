"""Each package has a module docstring, and no module is part of an import cycle."""

from __future__ import annotations

from pathlib import Path

import grimp

ROOT = Path(__file__).parents[2]


def test_every_package_says_what_lives_in_it() -> None:
    packages = [file for room in ("l7proxy", "tproxy_rules") for file in (ROOT / room).rglob("__init__.py")]
    silent = [file for file in packages if "_compiled" not in str(file) and not file.read_text().startswith('"""')]
    assert not silent


def test_no_module_imports_itself_by_way_of_others() -> None:
    graph = grimp.build_graph("l7proxy", "tproxy_rules", cache_dir=None)
    circles = [
        (one, other)
        for one in graph.modules
        for other in graph.find_modules_directly_imported_by(one)
        if graph.chain_exists(importer=other, imported=one)
    ]
    assert not circles
