"""Coverage-guided fuzzing of the properties that hypothesis checks: libFuzzer searches for inputs that reach new code.

    pip install atheris
    python -m tests.fuzz http1-gate [CORPUS_DIRECTORY] [-max_total_time=600] [other libFuzzer options]

Heads are raw bytes, seeded with tests/corpus; for the other targets hypothesis builds the input from the bytes.
A counter-example ends the run and is saved in a file `crash-…`; with that file as argument, the run repeats it.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

os.environ["L7PROXY_PURE"] = "1"  # coverage is measured for Python code only, not for compiled modules

Target = Callable[[bytes], object]
CORPUS: Final = Path(__file__).parent / "corpus" / "http"
LAWS: Final = {
    "http1-gate": "unit.gate.test_http1_laws:test_laws",
    "http2-gate": "unit.gate.test_http2_laws:test_laws",
    "http2-bytes": "unit.gate.test_http2_laws:test_mutated_bytes_end_in_records_not_in_faults",
    "http2-fields": "unit.wire.test_http2_fields:test_what_hpack_writes_we_read",
    "chunked": "unit.wire.test_chunked:test_cuts_change_nothing",
    "path": "unit.wire.test_path:test_once_is_enough_and_nothing_hides",
}
"""Targets whose input hypothesis builds from the bytes."""
HEADS: Final = ("requests", "responses")


def heads(which: str) -> Target:
    """The first byte selects the options, the rest is the head."""
    differential = importlib.import_module("tests.unit.wire.test_differential")
    if which == "responses":
        methods = differential.METHODS
        return lambda data: differential.same_response(data[1:], methods[data[0] % len(methods)]) if data else None
    rules = differential.RULES
    return lambda data: differential.same_request(data[1:], rules[data[0] % len(rules)]) if data else None


def law(name: str) -> Target:
    module, _, test = LAWS[name].partition(":")
    found: Target = getattr(importlib.import_module(f"tests.{module}"), test).hypothesis.fuzz_one_input
    return found


def seeds(directory: Path) -> None:
    """The corpus, each message with a first byte (the options) in front."""
    for path in CORPUS.rglob("*.http"):
        (directory / f"{path.parent.name}-{path.name}").write_bytes(b"\0" + path.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", choices=(*HEADS, *LAWS))
    args, options = parser.parse_known_args()
    try:
        import atheris
    except ImportError:
        raise SystemExit("atheris is not installed: pip install atheris") from None
    with atheris.instrument_imports(include=["l7proxy"]):
        target = heads(args.target) if args.target in HEADS else law(args.target)
    with tempfile.TemporaryDirectory() as directory:
        seeds(Path(directory))
        given = [directory] if args.target in HEADS else []
        atheris.Setup([sys.argv[0], *options, *given], target)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
