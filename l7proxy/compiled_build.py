"""Compiles the hot modules: `python -m l7proxy.compiled_build`. Needs mypy, Cython, setuptools and a C compiler.

With `--if-possible` a build that cannot be made is not an error: everything then runs as pure Python.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any, Final

from l7proxy import compiled

MODULES: Final = (
    "flows/pack",
    "flows/template",
    "flows/timestamp",
    "gate/access_log",
    "gate/actions",
    "gate/detect",
    "gate/http1",
    "gate/http1_exchange",
    "gate/http1_state",
    "gate/http2",
    "gate/http2_budget",
    "gate/http2_frame_handlers",
    "gate/http2_peer",
    "gate/http2_pending",
    "gate/http2_relay",
    "gate/http2_replies",
    "gate/http2_stream",
    "gate/http2_stream_table",
    "link/outbox",
    "model/cache",
    "model/http",
    "policy/combine",
    "policy/decide",
    "policy/decision",
    "policy/endpoints",
    "policy/http_table",
    "policy/match/http",
    "policy/match/pattern",
    "proxy/policy_store",
    "proxy/server/context",
    "proxy/server/memory",
    "proxy/server/poller",
    "proxy/server/session",
    "proxy/server/shares",
    "proxy/server/socket_stream",
    "proxy/server/timer_wheel",
    "proxy/server/transform",
    "proxy/server/upstream",
    "wire/authority",
    "wire/body",
    "wire/head",
    "wire/http1_fast",
    "wire/http2_fields",
    "wire/http2_frames",
    "wire/http2_head",
    "wire/trace_id",
)
"""The path of a request and of its flow. Not included: msgspec structs (mypyc drops their class arguments), and
modules whose dataclasses use a type that is imported for type checking only."""

NATIVE: Final = ("wire/http1_usual",)
"""Modules in Cython (.pyx). The Python module of the same name stands in where there is no build."""


def build(home: Path = compiled.HOME) -> None:
    """Compile, then replace the build directory. Running processes keep the files they have open."""
    from mypyc.build import mypycify  # needed only to build

    package = compiled.PACKAGE
    with tempfile.TemporaryDirectory() as name, chdir(package.parent):
        scratch = Path(name)
        sources = compiled.sources()
        extensions = mypycify(
            [
                "--ignore-missing-imports",
                "--follow-imports=silent",
                f"--cache-dir={scratch}/mypy",
                *(f"{package.name}/{module}.py" for module in MODULES),
            ],
            target_dir=f"{scratch}/c",
            debug_level="0",
        )
        compile_into(scratch / "made", [*extensions, *native(scratch)], scratch)
        manifest = json.dumps({"python": sys.version, "sources": sources})
        (scratch / "made" / compiled.MANIFEST).write_text(manifest)
        _prove(scratch / "made")
        beside = home.with_name(f"{home.name}.{os.getpid()}")
        shutil.copytree(scratch / "made", beside)
        shutil.rmtree(home, ignore_errors=True)
        beside.rename(home)


def native(scratch: Path, *flags: str) -> list[Any]:
    """The extensions of the native modules, compiled and linked with `flags`. Call it beside the package."""
    from Cython.Build import cythonize  # needed only to build
    from setuptools import Extension  # type: ignore[import-untyped]

    name = compiled.PACKAGE.name
    extensions = [
        Extension(
            f"{name}.{module.replace('/', '.')}",
            [f"{name}/{module}.pyx"],
            extra_compile_args=list(flags),
            extra_link_args=list(flags),
        )
        for module in NATIVE
    ]
    made: list[Any] = cythonize(extensions, build_dir=f"{scratch}/c", quiet=True)  # type: ignore[no-untyped-call]
    return made


def compile_into(made: Path, extensions: list[Any], scratch: Path) -> None:
    """Compile and link the extensions. CompileError or LinkError of setuptools.errors when that fails."""
    from setuptools import Distribution  # needed only to build

    command: Any = Distribution({"name": compiled.PACKAGE.name, "ext_modules": extensions}).get_command_obj("build_ext")
    command.build_lib, command.build_temp = str(made), f"{scratch}/o"
    command.ensure_finalized()
    command.run()


def _prove(made: Path) -> None:
    """Import every module of the build before it is installed: a broken build must not be used."""
    modules = ", ".join(f"{compiled.PACKAGE.name}.{module.replace('/', '.')}" for module in (*MODULES, *NATIVE))
    script = (
        "import os, sys, pathlib\nfrom l7proxy import compiled\ndel os.environ['L7PROXY_PURE']\n"
        f"compiled.use(pathlib.Path(sys.argv[1]))\nassert compiled.word() == 'compiled'\nimport {modules}"
    )
    subprocess.run([sys.executable, "-c", script, str(made)], env={**os.environ, "L7PROXY_PURE": "1"}, check=True)


def missing() -> str:
    """The missing build tools; "" when the build is possible."""
    needed: dict[str, Callable[[], object]] = {
        "a C compiler (cc)": lambda: shutil.which("cc") or shutil.which("gcc"),
        "mypy (in the extra `dev`)": lambda: _importable("mypyc.build"),
        "Cython (in the extra `dev`)": lambda: _importable("Cython.Build"),
        "setuptools": lambda: _importable("setuptools"),
    }
    return ", ".join(what for what, there in needed.items() if not there())


def _importable(module: str) -> bool:
    from importlib.util import find_spec

    try:
        return find_spec(module) is not None
    except ImportError:
        return False


def main() -> int:
    if_possible = "--if-possible" in sys.argv[1:]
    lacking = missing()
    if lacking:
        print(f"the hot modules are not compiled, missing: {lacking}", file=sys.stderr)
        return 0 if if_possible else 1
    from setuptools.errors import CompileError, LinkError  # type: ignore[import-untyped]

    if compiled.is_true(compiled.HOME):
        print("the hot modules are compiled")
        return 0
    try:
        build()
    except (SystemExit, subprocess.CalledProcessError, CompileError, LinkError) as error:
        print(f"the hot modules are not compiled: {error}", file=sys.stderr)
        return 0 if if_possible else 1
    print(f"compiled {len(MODULES) + len(NATIVE)} modules into {compiled.HOME}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
