"""OCI archives: what image-spec asks for, and the same bytes from the same files."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from deploy.image.oci import write_archive, write_layer

NAME = "docker.io/local/thing:7"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "usr" / "bin").mkdir(parents=True)
    (root / "usr" / "bin" / "tool").write_bytes(b"#!/bin/sh\n")
    (root / "usr" / "bin" / "tool").chmod(0o755)
    (root / "bin").symlink_to("usr/bin")
    os.link(root / "usr" / "bin" / "tool", root / "usr" / "bin" / "zz-same")
    return root


class Image:
    """An archive as a reader follows it: index, manifest, configuration, layers; every digest is checked."""

    def __init__(self, path: Path) -> None:
        with tarfile.open(path) as archive:
            self.files = {one.name: self._content(archive, one) for one in archive if one.isreg()}
        assert json.loads(self.files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
        (self.entry,) = json.loads(self.files["index.json"])["manifests"]
        self.manifest: dict[str, Any] = json.loads(self.blob(self.entry))
        self.config: dict[str, Any] = json.loads(self.blob(self.manifest["config"]))
        self.layers = [self.blob(one) for one in self.manifest["layers"]]

    @staticmethod
    def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
        file = archive.extractfile(member)
        assert file is not None
        return file.read()

    def blob(self, described: dict[str, Any]) -> bytes:
        content = self.files["blobs/" + described["digest"].replace(":", "/")]
        assert described["digest"] == "sha256:" + hashlib.sha256(content).hexdigest()
        assert described["size"] == len(content)
        return content


def test_every_digest_is_that_of_its_content(tree: Path, tmp_path: Path) -> None:
    digest = write_archive(tmp_path / "a.tar", NAME, [tree], {"Entrypoint": ["tool"]}, architecture="arm64")
    image = Image(tmp_path / "a.tar")
    assert image.entry["digest"] == digest
    assert image.entry["annotations"] == {
        "io.containerd.image.name": NAME,
        "org.opencontainers.image.ref.name": "7",
    }
    assert image.config["config"] == {"Entrypoint": ["tool"]}
    assert (image.config["os"], image.config["architecture"]) == ("linux", "arm64")
    assert image.config["rootfs"]["diff_ids"] == ["sha256:" + hashlib.sha256(one).hexdigest() for one in image.layers]


def test_compressed_layers_unpack_to_the_digests_that_the_configuration_names(tree: Path, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.tar", NAME, [tree], {}, compress=True)
    image = Image(tmp_path / "a.tar")
    assert [one["mediaType"] for one in image.manifest["layers"]] == ["application/vnd.oci.image.layer.v1.tar+gzip"]
    unpacked = [hashlib.sha256(gzip.decompress(one)).hexdigest() for one in image.layers]
    assert image.config["rootfs"]["diff_ids"] == ["sha256:" + one for one in unpacked]


@pytest.mark.parametrize("compress", [False, True])
def test_the_same_files_make_the_same_bytes_at_another_time(tree: Path, tmp_path: Path, compress: bool) -> None:
    write_archive(tmp_path / "a.tar", NAME, [tree], {"User": "1"}, compress=compress)
    for number, path in enumerate(sorted(tree.rglob("*"))):
        os.utime(path, (1_000_000 + number, 2_000_000 + number), follow_symlinks=False)
    write_archive(tmp_path / "b.tar", NAME, [tree], {"User": "1"}, compress=compress)
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_layer_keeps_modes_and_links_and_is_roots(tree: Path, tmp_path: Path) -> None:
    write_layer(tmp_path / "layer.tar", tree)
    with tarfile.open(tmp_path / "layer.tar") as tar:
        found = {one.name: one for one in tar}
    assert list(found) == ["bin", "usr", "usr/bin", "usr/bin/tool", "usr/bin/zz-same"]
    assert found["usr/bin/tool"].mode == 0o755
    assert (found["bin"].issym(), found["bin"].linkname) == (True, "usr/bin")
    assert (found["usr/bin/zz-same"].islnk(), found["usr/bin/zz-same"].linkname) == (True, "usr/bin/tool")
    assert {(one.uid, one.gid, one.mtime) for one in found.values()} == {(0, 0, 0)}


def test_a_layer_that_is_used_twice_is_stored_once(tree: Path, tmp_path: Path) -> None:
    write_archive(tmp_path / "a.tar", NAME, [tree, tree], {})
    with tarfile.open(tmp_path / "a.tar") as archive:
        names = archive.getnames()
    assert len(names) == len(set(names))
    assert len(Image(tmp_path / "a.tar").layers) == 2


def test_a_name_without_a_tag_is_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="localhost:5000/thing: has no tag"):
        write_archive(tmp_path / "a.tar", "localhost:5000/thing", [tree], {})
    assert not (tmp_path / "a.tar").exists()
