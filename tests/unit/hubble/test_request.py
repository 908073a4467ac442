"""What a request may cost the agent."""

from __future__ import annotations

import pytest

from l7proxy.errors import ConfigError
from l7proxy.flows.ring import BATCH
from l7proxy.hubble import request
from l7proxy.hubble.api.flow import flow_pb2
from l7proxy.hubble.api.observer import observer_pb2


def asked(*filters: flow_pb2.FlowFilter) -> observer_pb2.GetFlowsRequest:
    return observer_pb2.GetFlowsRequest(whitelist=filters)


def test_a_costly_filter_gives_way_to_other_tasks_more_often() -> None:
    plain, _ = request.read(asked(flow_pb2.FlowFilter(verdict=[flow_pb2.DROPPED])))
    costly, _ = request.read(asked(*[flow_pb2.FlowFilter(source_label=["app=web"] * 40)] * 100))
    assert (plain.batch, costly.batch) == (BATCH, 2)


@pytest.mark.parametrize(
    "one",
    [
        flow_pb2.FlowFilter(source_pod=["a"] * 1000, destination_pod=["a"] * 1000),
        flow_pb2.FlowFilter(source_label=["a," * 2000] * 20),
    ],
)
def test_values_are_bounded_over_all_filters(one: flow_pb2.FlowFilter) -> None:
    with pytest.raises(ConfigError, match="values, the limit is 4096"):
        request.read(asked(one, one, one))


def test_the_largest_request_of_hubble_ui_is_taken() -> None:
    one = flow_pb2.FlowFilter(reply=[False], source_pod=["namespace/"], verdict=[flow_pb2.FORWARDED, flow_pb2.DROPPED])
    found, _ = request.read(asked(*[one] * request.MOST_FILTERS))
    assert found.batch > 1
