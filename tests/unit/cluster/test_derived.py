"""The graph of derived values: computed again only if an input is another object, and never another result."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from l7proxy.cluster import derived
from l7proxy.cluster.derived import Derived, Node
from l7proxy.cluster.identity_labels import LabelFilter
from l7proxy.cluster.state import ClusterState
from l7proxy.model.resources import Namespace, Pod, Upsert
from l7proxy.policy.lang.options import DEFAULT
from l7proxy.sources import objects


class Sum:
    """Adds, and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *parts: tuple[int, ...]) -> tuple[int, ...]:
        self.calls += 1
        return (sum(number for part in parts for number in part),)


VALUES = [(number, 1) for number in range(3)]


@given(st.lists(st.lists(st.sampled_from(VALUES), max_size=3), max_size=8))
def test_a_node_gives_what_its_function_gives(rounds: list[list[tuple[int, ...]]]) -> None:
    node = Node(Sum())
    for inputs in rounds:
        assert node(*inputs) == Sum()(*inputs)


def test_it_is_computed_again_if_an_input_is_another_object_or_their_number_changes() -> None:
    add = Sum()
    node, (one, two) = Node(add), VALUES[:2]
    for inputs, calls in (((one, two), 1), ((one, two), 1), ((two, one), 2), ((two,), 3), ((two, one), 4), ((), 5)):
        node(*inputs)
        assert add.calls == calls


def test_an_equal_result_is_the_object_before_so_that_nothing_else_is_computed() -> None:
    first, second = Node(Sum()), Node(Sum())
    result = second(first((1, 2)))
    before = first((1, 2))
    assert first((2, 1)) is before
    assert second(before) is result


def test_the_drawing_names_every_node() -> None:
    made = Derived(cluster="c", secrets_namespace="", options=DEFAULT, kept=LabelFilter(), everywhere=())
    nodes = {name for name in vars(made) if not name.startswith("_")}
    assert nodes <= set(re.findall(r"\w+", derived.__doc__ or "")), "each node has its place in the drawing"


def test_a_change_of_one_kind_keeps_the_rest() -> None:
    """The rules are the same objects when the change does not concern them: `compile` then skips them."""
    document = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "p", "namespace": "default"},
        "spec": {"podSelector": {}},
    }
    state = ClusterState()
    state.apply([Upsert(objects.policy(document)), Upsert(Namespace("default", {}))])
    before = state.view("n1")
    state.apply([Upsert(Namespace("default", {"team": "a"}))])
    after = state.view("n1")
    assert before.rules
    assert after.rules is before.rules
    assert state.copy().view("n1") == after


def test_the_addresses_are_drawn_anew_only_when_one_has_changed() -> None:
    state = ClusterState()
    state.apply([Upsert(Pod("shop", "web", "node-1", ("10.0.1.5",)))])
    first = state.view("node-1")
    state.apply([Upsert(Namespace("other", {"stage": "test"}))])
    second = state.view("node-1")
    assert (second.by_prefix, second.names.owned) == (first.by_prefix, first.names.owned)
    assert second.by_prefix is first.by_prefix and second.names.owned is first.names.owned
    state.apply([Upsert(Pod("shop", "next", "node-1", ("10.0.1.6",)))])
    third = state.view("node-1")
    assert third.by_prefix.keys() - first.by_prefix.keys() == {"10.0.1.6/32"}
    assert third.names.owned.keys() - first.names.owned.keys() == {"10.0.1.6"}
