"""A batch with columns that do not fit is refused; its law, with `pack`, is in test_pack."""

from __future__ import annotations

import pytest

from l7proxy.flows.batch import FlowContext, Flows
from l7proxy.model.policy_verdict import Conn, PolicyVerdict
from l7proxy.model.verdict import Direction, Verdict

CONTEXT = FlowContext(Conn("10.0.0.10", 40000, "10.0.0.20", 80, 1, 2), 0, "GET", "HTTP/1.1")
ALLOWED = PolicyVerdict(Verdict.FORWARDED, Direction.INGRESS)


def test_columns_of_different_length_are_no_batch() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        Flows([CONTEXT], [ALLOWED], [1, 2], [0], ["http://a/"], [200], [1])


def test_a_record_that_is_not_in_the_batch_is_a_lookup_error() -> None:
    with pytest.raises(LookupError):
        Flows([CONTEXT], [], [1], [0], ["http://a/"], [200], [1]).records()
