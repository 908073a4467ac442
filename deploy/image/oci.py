"""Writes OCI image archives (image-spec 1.1, image-layout) that `ctr images import` and `skopeo` read. No registry.

The same files give the same bytes: members are sorted, all times are 0, and compressed layers carry no time or name.
Layers stay uncompressed unless asked: a node unpacks them as soon as they are imported.

`python -m deploy.image.oci OUT NAME LAYER... [--config JSON]`: a layer is a directory (files become root's) or a tar.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import platform
import stat
import tarfile
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final

INDEX: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64"}
"""Names of machines → those of the Go language, which OCI uses."""
CHUNK: Final = 1 << 20


def write_archive(
    path: Path,
    name: str,
    layers: Sequence[Path],
    config: Mapping[str, Any],
    *,
    architecture: str = "",
    compress: bool = False,
) -> str:
    """Write an image and return the digest of its manifest.

    `name`: full reference, `docker.io/local/l7proxy:1`. `layers`: directories or tars, lowest first. `config`: the
    runtime part of the image's configuration (`Entrypoint`, `Cmd`, `Env`, `User`, `Labels`). `architecture`: amd64 or
    arm64; empty: that of this machine. The archive replaces `path` when it is complete.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        finished = Path(scratch, "archive")
        with tarfile.open(finished, "w", format=tarfile.USTAR_FORMAT) as archive:
            blobs = _Blobs(archive)
            made = [_layer(layer, Path(scratch, f"{number}"), compress) for number, layer in enumerate(layers)]
            described = [blobs.add_file(file, LAYER + ("+gzip" if compress else "")) for file, _ in made]
            settings = {
                "architecture": architecture or ARCHITECTURES[platform.machine()],
                "os": "linux",
                "created": "1970-01-01T00:00:00Z",
                "config": dict(config),
                "rootfs": {"type": "layers", "diff_ids": [digest for _, digest in made]},
            }
            head = {"schemaVersion": 2, "mediaType": MANIFEST, "config": blobs.add_json(settings, CONFIG)}
            manifest = blobs.add_json({**head, "layers": described}, MANIFEST)
            names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": _tag(name)}
            index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{**manifest, "annotations": names}]}
            blobs.add("oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
            blobs.add("index.json", _json(index))
        finished.replace(path)
    return str(manifest["digest"])


class _Blobs:
    """The archive under construction: each blob once, by its digest."""

    def __init__(self, archive: tarfile.TarFile) -> None:
        self._archive = archive
        self._added: set[str] = set()

    def add(self, path: str, content: bytes) -> None:
        self._archive.addfile(_member(path, len(content)), io.BytesIO(content))

    def add_json(self, value: Mapping[str, Any], kind: str) -> dict[str, Any]:
        content = _json(value)
        described = _described(hashlib.sha256(content).hexdigest(), len(content), kind)
        if described["digest"] not in self._added:
            self._added.add(described["digest"])
            self.add(_blob(described), content)
        return described

    def add_file(self, path: Path, kind: str) -> dict[str, Any]:
        with path.open("rb") as file:
            described = _described(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size, kind)
            if described["digest"] not in self._added:
                self._added.add(described["digest"])
                file.seek(0)
                self._archive.addfile(_member(_blob(described), described["size"]), file)
        return described


def write_layer(out: Path, directory: Path) -> None:
    """The tar of a directory: sorted, all times 0, everything owned by root. Sockets are left out."""
    with tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as tar:
        linked: dict[tuple[int, int], str] = {}
        for path in _walk(directory):
            if path.is_socket():
                continue
            info = tar.gettarinfo(path, arcname=path.relative_to(directory).as_posix())
            _make_neutral(info)
            _link(info, path, linked)
            if info.isreg():
                with path.open("rb") as content:
                    tar.addfile(info, content)
            else:
                tar.addfile(info)


def _walk(directory: Path) -> Iterator[Path]:
    """All paths below a directory, sorted, a directory before its content; symbolic links are not followed."""
    for path in sorted(directory.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _make_neutral(info: tarfile.TarInfo) -> None:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = 0


def _link(info: tarfile.TarInfo, path: Path, linked: dict[tuple[int, int], str]) -> None:
    """A file with several names is stored once. `tarfile` does so by itself, but not in a known order."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        return
    info.type, info.linkname, info.size = tarfile.REGTYPE, "", status.st_size
    if status.st_nlink > 1:
        first = linked.setdefault((status.st_dev, status.st_ino), info.name)
        if first != info.name:
            info.type, info.linkname, info.size = tarfile.LNKTYPE, first, 0


def _layer(source: Path, scratch: Path, compress: bool) -> tuple[Path, str]:
    """(file to put into the archive, digest of the uncompressed tar)."""
    tar = source
    if source.is_dir():
        tar = scratch.with_suffix(".tar")
        write_layer(tar, source)
    with tar.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        if not compress:
            return tar, digest
        file.seek(0)
        packed = scratch.with_suffix(".tar.gz")
        with packed.open("wb") as out:
            _compress(file, out)
    return packed, digest


def _compress(file: IO[bytes], out: IO[bytes]) -> None:
    with gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0) as packed:
        while chunk := file.read(CHUNK):
            packed.write(chunk)


def _member(path: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.size, info.mode = size, 0o644
    return info


def _described(digest: str, size: int, kind: str) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": size}


def _blob(described: Mapping[str, Any]) -> str:
    return "blobs/" + str(described["digest"]).replace(":", "/")


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _tag(name: str) -> str:
    """The tag of a reference. ValueError when it has none: a node would look for `latest` in a registry."""
    _, colon, tag = name.rpartition("/")[2].partition(":")
    if not colon or not tag:
        raise ValueError(f"{name}: has no tag: write it as docker.io/OWNER/NAME:TAG")
    return tag


def main() -> None:
    parser = argparse.ArgumentParser(description="Write an OCI image archive.")
    parser.add_argument("out", type=Path)
    parser.add_argument("name", help="full reference, docker.io/local/x:1")
    parser.add_argument("layers", nargs="+", type=Path, help="directories or tars, lowest first")
    parser.add_argument("--config", type=json.loads, default={}, help='JSON, such as {"Entrypoint": ["/x"]}')
    parser.add_argument("--compress", action="store_true", help="compress the layers with gzip")
    given = parser.parse_args()
    digest = write_archive(given.out, given.name, given.layers, given.config, compress=given.compress)
    print(f"{given.out}: {given.name}, {given.out.stat().st_size / 1e6:.1f} MB, {digest}")


if __name__ == "__main__":
    main()
