"""Random policy sets of all languages: the product against the oracle, an independent evaluator of the same documents.

The long run is `python -m tests.oracle 100000`.
"""

from __future__ import annotations

import pytest

from tests.oracle.compare import differences

SETS = 20
"""Policy sets per test."""
PAIRS = 25


@pytest.mark.parametrize("start", range(0, 160, SETS))
def test_product_and_oracle_agree(start: int) -> None:
    found = [one for seed in range(start, start + SETS) for one in differences(seed, PAIRS) if one is not None]
    assert not found, "\n".join(map(str, found[:3]))
