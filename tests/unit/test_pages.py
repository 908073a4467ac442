"""Documentation that is generated from the code matches the code."""

from __future__ import annotations

import msgspec
import pytest

from l7proxy.settings import Settings
from tests import pages


@pytest.mark.parametrize(("page", "name"), pages.PARTS)
def test_the_page_is_what_the_code_says(page: str, name: str) -> None:
    text = (pages.ROOT / page).read_text(encoding="utf-8")
    expected = pages.with_part(text, name, pages.PARTS[page, name]())
    assert text == expected, f"{page}: the part {name!r} is not what the code says: run `{pages.COMMAND}`"


def test_every_setting_has_a_row_that_says_what_it_means() -> None:
    rows = [line.strip("| ").split(" | ") for line in pages.settings_table().splitlines()[2:]]
    assert [row[0] for row in rows] == [f"`{name.replace('_', '-')}`" for name in Settings.__struct_fields__]
    assert all(len(row[-1]) > 10 and row[-2] for row in rows)


def test_defaults_are_those_of_the_definitions() -> None:
    text = pages.settings_table()
    assert "| `mark-proxy` | `--mark-proxy` | one bit | `0x1000000` |" in text
    assert "| `workers` | `--workers` | 1 to 256 | one per core |" in text
    assert "| `backend` | `--backend` | `auto`, `nftables`, `iptables` | `auto` |" in text
    assert {field.name for field in msgspec.structs.fields(Settings)} >= set(pages.TEXTS)


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no part 'layers'"):
        pages.with_part("# A page\n", "layers", "text")
