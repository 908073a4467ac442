"""Services are grouped by namespace; what depends on a group is computed again only if something of it has changed."""

from __future__ import annotations

from l7proxy.cluster.derived import ServicesByNamespace
from l7proxy.model.resources import EndpointSlice, Service

FIRST, SECOND = Service("a", "one"), Service("b", "two")
SLICE = EndpointSlice("a", "one-x", "one", ("10.0.0.1",))


def test_a_namespace_without_a_change_keeps_its_object() -> None:
    group = ServicesByNamespace()
    before = group((FIRST, SECOND), (SLICE,))
    after = group((FIRST, SECOND), (EndpointSlice("a", "one-x", "one", ("10.0.0.2",)),))
    assert after["b"] is before["b"]
    assert after["a"].slices[0].addresses == ("10.0.0.2",)


def test_only_a_service_without_slices_needs_pods() -> None:
    found = ServicesByNamespace()((FIRST, SECOND), (SLICE,))
    assert (found["a"].need_pods, found["b"].need_pods) == (False, True)


def test_a_slice_of_another_service_does_not_count() -> None:
    other = EndpointSlice("a", "x", "unknown", ("10.0.0.1",))
    assert ServicesByNamespace()((FIRST,), (other,))["a"].need_pods


def test_the_last_slice_may_go() -> None:
    group = ServicesByNamespace()
    group((FIRST,), (SLICE,))
    assert group((FIRST,), ())["a"].need_pods
