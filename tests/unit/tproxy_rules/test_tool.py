"""Tools get their input whole or in pieces."""

from __future__ import annotations

import pytest

from tproxy_rules.tool import run


@pytest.mark.parametrize(
    "text", ["", "äbc\n", ["ä", "", "bc\n"], iter(["äb", "c\n"])], ids=["empty", "whole", "list", "iterator"]
)
def test_a_tool_reads_its_input_to_the_end(text: object) -> None:
    assert run(("cat",), text) == ("äbc\n" if text else "")  # type: ignore[arg-type]


def test_more_input_than_a_pipe_holds() -> None:
    pieces = [f"{number:09}\n" for number in range(100_000)]
    assert run(("cat",), iter(pieces)) == "".join(pieces)
