"""An image that differs from `make image`'s in the link's PROTOCOL_VERSION: one file more, in a layer on top."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from deploy.image import oci
from l7proxy.link.messages import PROTOCOL_VERSION

CHANGED: Final = "l7proxy/link/messages.py"
NEXT: Final = PROTOCOL_VERSION + 1


def write(image: Path, out: Path, name: str, scratch: Path) -> None:
    """Write to `out` the image `name`: like `image`, with the protocol version NEXT."""
    with tarfile.open(image) as archive:
        (listed,) = _json(archive, "index.json")["manifests"]
        manifest = _json(archive, _blob(listed))
        config = _json(archive, _blob(manifest["config"]))["config"]
        layers = [_extracted(archive, layer, scratch) for layer in manifest["layers"]]
    layers.append(_with_next_version(layers, scratch / "top"))
    oci.write_archive(out, name, layers, config)


def _with_next_version(layers: list[Path], top: Path) -> Path:
    """A directory with the changed source. A compiled build of other sources is not used: `l7proxy.compiled`."""
    for layer in layers:
        with tarfile.open(layer) as tar:
            for member in tar:
                if member.name.endswith(CHANGED):
                    source = tar.extractfile(member)
                    assert source
                    text, number = re.subn(
                        rf"^PROTOCOL_VERSION: Final = {PROTOCOL_VERSION}$",
                        f"PROTOCOL_VERSION: Final = {NEXT}",
                        source.read().decode(),
                        flags=re.MULTILINE,
                    )
                    assert number == 1, f"{member.name}: is not of this checkout: make image"
                    changed = top / member.name
                    changed.parent.mkdir(parents=True)
                    changed.write_text(text)
                    # The image's byte code counts without a look at the source: a whiteout removes it (OCI image-spec).
                    removed = changed.parent / "__pycache__" / ".wh.messages.cpython-311.pyc"
                    removed.parent.mkdir()
                    removed.touch()
                    return top
    raise AssertionError(f"{CHANGED} is in no layer")


def _extracted(archive: tarfile.TarFile, layer: Mapping[str, Any], scratch: Path) -> Path:
    assert layer["mediaType"] == oci.LAYER
    member = archive.getmember(_blob(layer))
    archive.extract(member, scratch, filter="data")
    return scratch / member.name


def _json(archive: tarfile.TarFile, name: str) -> Any:
    file = archive.extractfile(name)
    assert file
    return json.load(file)


def _blob(described: Mapping[str, Any]) -> str:
    return "blobs/" + str(described["digest"]).replace(":", "/")
