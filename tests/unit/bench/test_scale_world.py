"""The objects of the large cluster are ones that the agent reads without a fault."""

from __future__ import annotations

from collections import Counter

from bench import scale_world
from bench.scale_world import Size
from l7proxy.model.resources import Pod, Resource
from l7proxy.sources.decode import Fault, decode

SIZE = Size(nodes=10, pods=300, services=20, policies=1_000)


def test_every_object_is_read_and_there_are_as_many_as_the_size_says() -> None:
    read = [decode(one) for one in scale_world.objects(SIZE, "node-1")]
    assert not [one for one in read if isinstance(one, Fault | Exception)]
    kinds = Counter(type(one).__name__ for one in read)
    assert kinds["Node"] == SIZE.nodes - 1  # the node under test is the lab's
    assert (kinds["Pod"], kinds["Service"], kinds["EndpointSlice"]) == (SIZE.pods, SIZE.services, SIZE.services)
    assert kinds["PolicyDocument"] == SIZE.policies
    keys = [one.key for one in read if isinstance(one, Resource)]
    assert len(set(keys)) == len(keys)


def test_a_replaced_pod_has_another_name_and_the_same_address() -> None:
    old, new = (decode(scale_world.pod(SIZE, 7, "node-1", generation)) for generation in (0, 1))
    assert isinstance(old, Pod) and isinstance(new, Pod)
    assert (old.name != new.name, old.addresses, old.node) == (True, new.addresses, new.node)
