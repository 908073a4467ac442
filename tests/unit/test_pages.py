"""Documentation that is generated from the code matches the code."""

from __future__ import annotations

import pytest

from tests import pages


@pytest.mark.parametrize(("page", "name"), pages.PARTS)
def test_the_page_is_what_the_code_says(page: str, name: str) -> None:
    text = (pages.ROOT / page).read_text(encoding="utf-8")
    expected = pages.with_part(text, name, pages.PARTS[page, name]())
    assert text == expected, f"{page}: the part {name!r} is not what the code says: run `{pages.COMMAND}`"


def test_the_schema_is_what_the_code_says() -> None:
    text = (pages.ROOT / pages.SCHEMA).read_text(encoding="utf-8")
    assert text == pages.schema_text(), f"{pages.SCHEMA} is not what the code says: run `{pages.COMMAND}`"


def test_rows_say_what_the_definitions_say() -> None:
    text = pages.settings_table()
    assert "| `L7PROXY_MARK_PROXY` | a single bit of the packet mark, as 0x1000000 | `0x1000000` |" in text
    assert "| `workers` | `L7PROXY_WORKERS` | a whole number from 1 to 256 | one per core | agent, workers |" in text
    assert "| `backend` | `L7PROXY_BACKEND` | one of auto, nftables, iptables | `auto` | agent, cleanup |" in text
    properties = pages.schema()["properties"]
    assert properties["workers"].items() >= {"type": "integer", "minimum": 1, "maximum": 256}.items()
    assert properties["refuse"].items() >= {"enum": ["reset", "drop"], "default": "reset"}.items()
    assert properties["tunnel-ports"]["items"] == {"type": "integer", "minimum": 1, "maximum": 65535}


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="no part 'layers'"):
        pages.with_part("# A page\n", "layers", "text")
