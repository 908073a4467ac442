"""The generated modules of l7proxy/hubble/api are those of the .proto files beside them."""

from __future__ import annotations

from types import ModuleType

import pytest
from google.protobuf import descriptor_pb2

from l7proxy.hubble.api.flow import flow_pb2
from l7proxy.hubble.api.observer import observer_pb2
from l7proxy.hubble.api.peer import peer_pb2
from l7proxy.hubble.api.relay import relay_pb2
from tests import protos

MODULES = {"flow": flow_pb2, "observer": observer_pb2, "peer": peer_pb2, "relay": relay_pb2}


@pytest.mark.parametrize(("name", "module"), MODULES.items())
def test_a_module_is_that_of_its_proto_file(name: str, module: ModuleType) -> None:
    """Descriptors are compared, not texts: those differ between versions of protoc."""
    found = descriptor_pb2.FileDescriptorProto()
    module.DESCRIPTOR.CopyToProto(found)
    assert found == protos.described()[f"{name}/{name}.proto"], f"run: python -m tests.protos ({name}.proto changed)"


def test_field_numbers_are_those_of_the_api() -> None:
    """Some that no reader of ours would miss if they were wrong on both sides."""
    numbers = {name: field.number for name, field in flow_pb2.Flow.DESCRIPTOR.fields_by_name.items()}
    assert {name: numbers[name] for name in ("IP", "is_reply", "uuid", "ingress_denied_by", "Summary")} == {
        "IP": 5,
        "is_reply": 26,
        "uuid": 34,
        "ingress_denied_by": 21005,
        "Summary": 100000,
    }
