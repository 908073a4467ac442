"""The bill of materials of the image."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from deploy.image import sbom

STATUS = """\
Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc
Version: 2.36-9+deb12u10
Description: GNU C Library: Shared libraries
 Contains the standard libraries.

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1
Description: removed

Package: libstdc++6
Status: install ok installed
Architecture: amd64
Version: 1:12.2.0-14
Description: GNU Standard C++ Library v3
"""
METADATA = """\
Metadata-Version: 2.4
Name: google_re2
Version: 1.1.20251105
Summary: RE2 Python bindings
License-Expression: BSD-3-Clause

Version: in the description, no header
"""


def layer(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def layers(tmp_path: Path) -> list[Path]:
    site = "usr/local/lib/python3.11/dist-packages"
    ours = "Metadata-Version: 2.4\nName: l7proxy\nVersion: 0.1.0\n"
    return [
        layer(tmp_path / "debian.tar", {"./var/lib/dpkg/status": STATUS, "./usr/bin/nft": "program"}),
        layer(
            tmp_path / "l7proxy.tar",
            {
                f"{site}/google_re2-1.1.20251105.dist-info/METADATA": METADATA,
                f"{site}/l7proxy-0.1.0.dist-info/METADATA": ours,
                f"{site}/l7proxy/__init__.py": "",
            },
        ),
    ]


def test_it_names_every_installed_package_and_distribution(layers: list[Path]) -> None:
    found = json.loads(sbom.of_layers(layers, "docker.io/l7proxy/l7proxy:dev", "debian-12"))
    assert (found["bomFormat"], found["specVersion"]) == ("CycloneDX", "1.5")
    assert found["metadata"]["component"] == {
        "type": "container",
        "name": "docker.io/l7proxy/l7proxy:dev",
        "version": "0.1.0",
        "bom-ref": "docker.io/l7proxy/l7proxy:dev",
    }
    assert [one["purl"] for one in found["components"]] == [
        "pkg:deb/debian/libc6@2.36-9%2Bdeb12u10?arch=amd64&distro=debian-12",
        "pkg:deb/debian/libstdc%2B%2B6@1%3A12.2.0-14?arch=amd64&distro=debian-12",
        "pkg:pypi/google-re2@1.1.20251105",
        "pkg:pypi/l7proxy@0.1.0",
    ]
    assert found["components"][0]["description"] == "GNU C Library: Shared libraries"
    assert found["components"][2]["licenses"] == [{"expression": "BSD-3-Clause"}]
    (dependencies,) = found["dependencies"]
    assert dependencies["dependsOn"] == [one["bom-ref"] for one in found["components"]]


def test_the_same_layers_give_the_same_bytes_and_others_another_serial_number(layers: list[Path]) -> None:
    def made(some: list[Path]) -> str:
        return sbom.of_layers(some, "image", "debian-12")

    assert made(layers) == made(layers[::-1])
    assert json.loads(made(layers))["serialNumber"] != json.loads(made(layers[:1]))["serialNumber"]


@pytest.mark.parametrize(
    ("header", "licenses"),
    [
        ("License-Expression: MIT OR Apache-2.0", [{"expression": "MIT OR Apache-2.0"}]),
        ("License: BSD", [{"license": {"name": "BSD"}}]),
        ("License: Redistribution and use\n        in source and binary forms", None),
        ("Keywords: none", None),
    ],
)
def test_licenses_are_those_that_the_metadata_names(header: str, licenses: object) -> None:
    assert sbom.python_distribution(f"Name: x\nVersion: 1\n{header}\n").get("licenses") == licenses
