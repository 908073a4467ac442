"""Makes the Python modules of l7proxy/hubble/api from its .proto files.

python -m tests.protos             writes them
tests/unit/hubble/test_protos.py   compares them with the .proto files
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Final

from google.protobuf import descriptor_pb2
from grpc_tools import protoc

ROOT: Final = Path(__file__).resolve().parent.parent
API: Final = ROOT / "l7proxy/hubble/api"
PACKAGE: Final = "l7proxy.hubble.api"
NAMES: Final = ("flow", "observer", "peer", "relay")


def made() -> Mapping[Path, str]:
    """Path → text of each generated module.

    Descriptors keep the API's file names (`flow/flow.proto`), which reflection shows; Python's modules are in a package
    of ours, since top-level packages named `flow` or `peer` may clash with others.
    """
    with tempfile.TemporaryDirectory() as scratch:
        _protoc(f"--python_out={scratch}", f"--pyi_out={scratch}")
        paths = sorted(Path(scratch).rglob("*.py*"))
        return {API / path.relative_to(scratch): _ours(path.read_text()) for path in paths}


def described() -> Mapping[str, descriptor_pb2.FileDescriptorProto]:
    """The API's file name → what its .proto file defines."""
    with tempfile.NamedTemporaryFile() as scratch:
        _protoc(f"--descriptor_set_out={scratch.name}")
        found = descriptor_pb2.FileDescriptorSet.FromString(Path(scratch.name).read_bytes())
    for file in found.file:
        for message in file.message_type:
            _without_json_names(message)
    return {file.name: file for file in found.file}


def _without_json_names(message: descriptor_pb2.DescriptorProto) -> None:
    """protoc adds the names that follow from those of the fields; generated modules do not have them."""
    for field in message.field:
        field.ClearField("json_name")
    for nested in message.nested_type:
        _without_json_names(nested)


def _protoc(*options: str) -> None:
    known = resources.files("grpc_tools") / "_proto"
    if protoc.main(["protoc", f"-I{API}", f"-I{known}", *options, *(f"{name}/{name}.proto" for name in NAMES)]):
        raise RuntimeError("protoc failed: see its messages above")


def _ours(text: str) -> str:
    """Imports of one module from another name our package."""
    return re.sub(rf"^from ({'|'.join(NAMES)})( |\.)", rf"from {PACKAGE}.\1\2", text, flags=re.MULTILINE)


def main() -> None:
    for path, text in made().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
