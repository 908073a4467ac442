"""`make image`: the image of l7proxy as an OCI archive, from Debian packages and wheels, without an image registry.

Three layers: Debian with what the proxy calls (Python, nft, iptables, ipset, ip), l7proxy with its dependencies, and
a bill of materials of both, which is also written beside the archive. The hot modules are compiled in a Debian of the
same release that is thrown away; no compiler is in the image. What does not change between runs is kept in the cache,
by what it was made from. Runs as root on Debian or Ubuntu.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from deploy.image import sbom
from deploy.image.oci import write_archive, write_layer
from deploy.image.requirements import BUILD, ROOT, RUNTIME, download

SUITE: Final = "bookworm"
DISTRIBUTION: Final = "debian-12"
PACKAGES: Final = ("python3-minimal", "libpython3-stdlib", "nftables", "iptables", "ipset", "iproute2")
"""ca-certificates is not among them: the only TLS peer is the API server, whose CA comes with the service account."""
BUILD_PACKAGES: Final = ("python3-dev", "python3-pip", "gcc", "libc6-dev")
NOT_NEEDED: Final = (
    *(f"/usr/share/{name}/*" for name in ("doc", "man", "locale", "info", "lintian", "bug")),
    "/usr/lib/*/gconv/*",
)
"""gconv: character sets of iconv, which nothing here calls."""
PURGED: Final = (
    "apt",
    "libapt-pkg6.0",
    "gpgv",
    "debian-archive-keyring",
    "libgnutls30",
    "libp11-kit0",
    "libunistring2",
    "libidn2-0",
    "libtasn1-6",
    "e2fsprogs",
    "libext2fs2",
    "libss2",
    "logsave",
    "adduser",
    "tzdata",
    "perl",
    "perl-modules-5.36",
    "libperl5.36",
    "perl-base",
)
"""What only the installation needs. dpkg's list of what remains is true, so scanners know every package."""
KEPT: Final = 8
"""Archives of one name that stay in the cache: several checkouts may build at the same time."""
USER: Final = "65532:65532"
"""Not root. The agent and the workers need root for their capabilities: the chart says so where they run."""
ENVIRONMENT: Final = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "PYTHONHASHSEED": "0"}
"""Of the compilation: nothing of the machine's own."""
PLACE: Final = "usr/local/lib/python3.11/dist-packages"
CLEAN: Final = rf"""
set -eu
chroot "$1" dpkg --purge --force-depends --force-remove-essential {" ".join(PURGED)} >"$1/tmp/purged" 2>&1 ||
  {{ cat "$1/tmp/purged"; exit 1; }}
rm -rf "$1"/usr/lib/python3.11/test "$1"/usr/lib/python3.11/pydoc_data
chroot "$1" python3 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3.11
cd "$1"
rm -rf var/lib/apt/lists var/cache/* var/log/* tmp/* run/* etc/machine-id etc/resolv.conf etc/hostname
rm -f etc/passwd- etc/group- etc/shadow- etc/gshadow- var/lib/dpkg/*-old
sed -i 's/^\([^:]*:[^:]*\):[0-9]*:/\1:1:/' etc/shadow
find usr/bin usr/sbin usr/lib -perm /6000 -type f -exec chmod ug-s {{}} +
"""
"""Bytecode that needs no time stamps; nothing that differs from build to build; no set-user-ID programs."""
COMPILE: Final = r"""
set -eu
pip() { python3 -m pip --quiet --disable-pip-version-check install --root-user-action=ignore --no-index --no-compile \
  --break-system-packages --no-warn-script-location --find-links=/build/wheels "$@"; }
pip --target=/build/tools --require-hashes -r /build/build-requirements.txt
pip --root=/build/out --no-deps --require-hashes -r /build/requirements.txt
pip --root=/build/out --no-deps l7proxy
if [ "$2" = compiled ]; then
  mkdir /build/tree
  cp -r /build/out/"$1"/l7proxy /build/tree
  cd /build/tree
  PYTHONPATH=/build/tree:/build/tools:/build/out/"$1" TMPDIR=/build/tmp python3 -m l7proxy.compiled_build
  cp -r l7proxy/_compiled /build/out/"$1"/l7proxy
fi
cd /build/out/"$1"
(cd kubernetes && rm -r client/api aio/client/api &&
  find client/models aio/client/models -name '*.py' ! -name __init__.py -delete)
find . -name '*.so' -exec strip --strip-unneeded {} +
find . -name __pycache__ -prune -exec rm -rf {} +
find . -name direct_url.json -delete
python3 -m compileall -q --invalidation-mode unchecked-hash -s /build/out .
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="/build/out/$1" python3 -c 'import l7proxy.agent.run, l7proxy.cli.main'
"""
"""Of the Kubernetes client, only transport and credentials are used: the classes of its typed API are 90 MB."""
SBOM: Final = "usr/share/sbom/l7proxy.cdx.json"


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the image of l7proxy as an OCI archive.")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "l7proxy.oci.tar")
    parser.add_argument("--name", default="docker.io/l7proxy/l7proxy:dev", help="full reference with a tag")
    parser.add_argument("--pure", action="store_true", help="without machine code: quicker to build, slower to run")
    given = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("error: root is required: mmdebstrap and chroot make the image's files")
    if shutil.which("mmdebstrap") is None:
        sys.exit("error: mmdebstrap is missing: apt-get install mmdebstrap")
    began = time.monotonic()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    layers = [debian("image", PACKAGES, CLEAN), l7proxy_layer("pure" if given.pure else "compiled")]
    materials = sbom.of_layers(layers, given.name, DISTRIBUTION)
    given.out.with_name(f"{given.out.name.partition('.')[0]}.cdx.json").write_text(materials)
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch, SBOM)
        file.parent.mkdir(parents=True)
        file.write_text(materials)
        digest = write_archive(given.out, given.name, [*layers, Path(scratch)], config())
    sizes = ", ".join(f"{one.stat().st_size / 1e6:.1f} MB ({_packed(one) / 1e6:.1f} MB gzip)" for one in layers)
    print(f"{given.out}: {given.name}, layers {sizes}, {digest}, {time.monotonic() - began:.0f} s")


def config() -> Mapping[str, Any]:
    """The runtime part of the image's configuration."""
    return {
        "Entrypoint": ["l7proxy"],
        "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE=1"],
        "User": USER,
        "Labels": {"org.opencontainers.image.title": "l7proxy", "org.opencontainers.image.licenses": "Apache-2.0"},
    }


def cache() -> Path:
    """Outside the tree, so that a clean checkout need not download Debian again."""
    found = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "l7proxy", "image")
    found.mkdir(parents=True, exist_ok=True)
    return found


def debian(name: str, packages: Sequence[str], clean: str) -> Path:
    """The tar of a minimal Debian with these packages."""
    made = cache() / f"{name}-{_key(SUITE, *packages, clean, *NOT_NEEDED)}.tar"
    if made.exists():
        made.touch()
        return made
    print(f"making a Debian {SUITE} with {', '.join(packages)}")
    with tempfile.TemporaryDirectory(dir=cache()) as scratch:
        tar, hook = Path(scratch, "root.tar"), Path(scratch, "clean.sh")
        hook.write_text(clean)
        without = [f"--dpkgopt=path-exclude={one}" for one in NOT_NEEDED]
        command = [
            "mmdebstrap",
            "--quiet",
            "--variant=minbase",
            "--mode=root",
            "--skip=cleanup/apt",
            f"--include={','.join(packages)}",
        ]
        hooks = [f'--customize-hook=sh {hook} "$1"'] if clean else []
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "0"}
        subprocess.run([*command, *without, *hooks, SUITE, str(tar)], check=True, env=environment)
        tar.replace(made)
    forget(name)
    return made


def forget(name: str) -> None:
    """Remove all but the last used archives of this name: each change of the sources makes a new one."""
    made = sorted(cache().glob(f"{name}-*.tar"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in made[KEPT:]:
        old.unlink(missing_ok=True)


def l7proxy_layer(kind: str) -> Path:
    """The tar of l7proxy and its dependencies. `kind`: compiled, or pure."""
    files = (path for room in ("l7proxy", "tproxy_rules") for path in (ROOT / room).rglob("*"))
    sources = sorted(path for path in files if path.suffix in (".py", ".pyx"))
    parts = [path.read_bytes() for path in (*sources, ROOT / "pyproject.toml", RUNTIME, BUILD)]
    made = cache() / f"l7proxy-{_key(kind, COMPILE, SUITE, *BUILD_PACKAGES, *map(str, sources), *parts)}.tar"
    if made.exists():
        made.touch()
        return made
    builder = debian("builder", BUILD_PACKAGES, "")
    print(f"installing l7proxy, {kind}")
    with tempfile.TemporaryDirectory(dir=cache()) as scratch:
        root = Path(scratch, "root")
        root.mkdir()
        subprocess.run(["tar", "-xf", builder, "-C", root, "--exclude=./dev/*"], check=True)
        build = root / "build"
        (build / "tmp").mkdir(parents=True)
        _wheels(build / "wheels", Path(scratch, "tree"))
        for listed in (RUNTIME, BUILD):
            shutil.copy(listed, build)
        subprocess.run(["chroot", root, "sh", "-c", COMPILE, "sh", PLACE, kind], check=True, env=ENVIRONMENT)
        write_layer(Path(scratch, "layer.tar"), build / "out")
        Path(scratch, "layer.tar").replace(made)
    forget("l7proxy")
    return made


def _wheels(into: Path, tree: Path) -> None:
    """Every wheel that the build installs: pinned ones, and l7proxy's own, made from a copy of its sources."""
    machine = platform.machine()
    for listed in (RUNTIME, BUILD):
        download(into, machine, ["--require-hashes", f"--requirement={listed}"])
    without = shutil.ignore_patterns("__pycache__", "_compiled*", "*.egg-info")
    for room in ("l7proxy", "tproxy_rules"):
        shutil.copytree(ROOT / room, tree / room, ignore=without)
    for file in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / file, tree)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    subprocess.run([*pip, "--no-deps", f"--wheel-dir={into}", str(tree)], check=True)


def _key(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:16]


def _packed(path: Path) -> int:
    """Bytes after gzip: what a registry stores, and a node downloads."""
    return len(gzip.compress(path.read_bytes(), mtime=0))


if __name__ == "__main__":
    main()
