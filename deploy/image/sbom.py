"""The image's bill of materials as CycloneDX 1.5 JSON, from the metadata that dpkg and pip have left in its layers.

The same layers give the same bytes: components are sorted, and the serial number is made from them.
"""

from __future__ import annotations

import json
import re
import tarfile
import uuid
from collections.abc import Iterable, Iterator, Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

DPKG_STATUS: Final = "var/lib/dpkg/status"
PYTHON_METADATA: Final = ".dist-info/METADATA"
PRODUCT: Final = "l7proxy"
_SERIAL: Final = uuid.UUID("8f6e5b1e-6c7b-4a52-9a4e-0d0f5f0a7c11")
"""Namespace of serial numbers: any fixed one."""

Component = dict[str, Any]


def of_layers(layers: Iterable[Path], image: str, distribution: str) -> str:
    """The document of an image that is made of these tars. `image`: its name. `distribution`: `debian-12`."""
    found: list[Component] = []
    for layer in layers:
        for path, text in _metadata(layer):
            found += debian_packages(text, distribution) if path == DPKG_STATUS else [python_distribution(text)]
    return document(image, found)


def _metadata(layer: Path) -> Iterator[tuple[str, str]]:
    with tarfile.open(layer) as tar:
        for member in tar:
            path = member.name.removeprefix("./")
            if (path == DPKG_STATUS or path.endswith(PYTHON_METADATA)) and (content := tar.extractfile(member)):
                yield path, content.read().decode()


def debian_packages(status: str, distribution: str) -> list[Component]:
    """From the text of dpkg's `status`. Only those that are installed."""
    stanzas = [HeaderParser().parsestr(text) for text in status.strip().split("\n\n")]
    return [
        _component(
            one["Package"],
            one["Version"],
            f"pkg:deb/debian/{quote(one['Package'], safe='')}@{quote(one['Version'], safe='')}"
            f"?arch={one['Architecture']}&distro={distribution}",
            description=one["Description"].splitlines()[0] if one["Description"] else "",
        )
        for one in stanzas
        if one["Package"] and (one["Status"] or "").endswith(" installed")
    ]


def python_distribution(metadata: str) -> Component:
    """From the text of METADATA (core metadata specifications of the Python Packaging Authority)."""
    one = HeaderParser().parsestr(metadata)
    name, version = one["Name"], one["Version"]
    normalized = re.sub(r"[-_.]+", "-", name).lower()
    component = _component(
        name, version, f"pkg:pypi/{normalized}@{quote(version, safe='')}", description=one["Summary"] or ""
    )
    if one["License-Expression"]:
        component["licenses"] = [{"expression": one["License-Expression"]}]
    elif one["License"] and "\n" not in one["License"].strip():
        component["licenses"] = [{"license": {"name": one["License"].strip()}}]
    return component


def _component(name: str, version: str, purl: str, *, description: str) -> Component:
    made = {"type": "library", "name": name, "version": version, "bom-ref": purl, "purl": purl}
    return made | ({"description": description} if description else {})


def document(image: str, components: Sequence[Component]) -> str:
    """`image`: its name, `docker.io/l7proxy/l7proxy:dev`. Our own distribution says which version it is of."""
    ordered = sorted(components, key=lambda one: str(one["purl"]))
    version = next((one["version"] for one in ordered if one["name"] == PRODUCT), "")
    subject = {"type": "container", "name": image, "version": version, "bom-ref": image}
    serial = uuid.uuid5(_SERIAL, json.dumps([subject, ordered], sort_keys=True))
    made = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "serialNumber": f"urn:uuid:{serial}",
        "version": 1,
        "metadata": {"component": subject},
        "components": ordered,
        "dependencies": [{"ref": image, "dependsOn": [one["bom-ref"] for one in ordered]}],
    }
    return json.dumps(made, indent=1, sort_keys=True) + "\n"
