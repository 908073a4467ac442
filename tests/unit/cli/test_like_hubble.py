"""What `observe` prints equals, byte for byte, what the `hubble` command prints of the same flows.

The recorded output in tests/data/flows/printed is that of hubble 1.19.4, made by
`python -m tests.unit.cli.test_like_hubble`; it is compared everywhere. Where the command is there (HUBBLE_CLI, or among
the parts of the test cluster), both print 10 000 flows more.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from l7proxy.cli.main import app
from tests.support.random_flows import responses
from tests.unit.cli.conftest import Run

PRINTED = Path(__file__).parents[2] / "data/flows/printed"
FLOWS = PRINTED / "flows.jsonl"
SEED, RECORDED, MANY = 12, 120, 10_000
FORMS = {
    "compact": "-o compact",
    "compact-colours": "-o compact --color always --print-policy-names --print-node-name",
    "compact-numeric": "-o compact --numeric --time-format RFC3339Nano",
    "dict": "-o dict",
    "dict-colours": "-o dict --color always --print-node-name --time-format RFC1123Z",
    "table": "-o table",
    "table-names": "-o tab --print-node-name --print-policy-names --color always --time-format YearMonthDayHour",
    "json": "-o json",
}
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "l7proxy/cluster"


def hubble() -> str:
    """The real command; empty where it is not found."""
    built = sorted(path for path in CACHE.glob("hubble-*/hubble") if path.is_file())
    return os.environ.get("HUBBLE_CLI") or (str(built[-1]) if built else shutil.which("hubble") or "")


def written(path: Path, seed: int, count: int) -> Path:
    path.write_bytes(b"".join(response.line() for response in responses(seed, count)))
    return path


def told_by_hubble(command: str, flows: Path, flags: str) -> tuple[str, str]:
    """What it prints on standard output and on standard error."""
    found = subprocess.run(
        [command, "observe", "--input-file", str(flows), *flags.split()], capture_output=True, check=True, timeout=120
    )
    return found.stdout.decode(), found.stderr.decode()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of flows for the real command."""
    if not hubble():
        pytest.skip("no hubble command: set HUBBLE_CLI to its path")
    return written(tmp_path_factory.mktemp("flows") / "flows.jsonl", SEED + 1, MANY)


def test_each_flag_of_hubble_is_known_also_in_its_short_form() -> None:
    command = typer.main.get_command(app)
    assert isinstance(command, typer.core.TyperGroup)
    known = {name for one in command.commands["observe"].params for name in one.opts}
    assert set((PRINTED.parent / "hubble_flags.txt").read_text().split()) - known == set()


@pytest.mark.parametrize("form", FORMS)
def test_recorded_output(run: Run, form: str) -> None:
    found = run("observe", "--input-file", str(FLOWS), *FORMS[form].split())
    assert (found.returncode, found.stdout) == (0, (PRINTED / f"{form}.txt").read_text())
    assert found.stderr == (PRINTED / f"{form}.err").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["compact-colours", "dict", "table-names", "json"])
def test_random_flows(run: Run, form: str, many: Path) -> None:
    found = run("observe", "--input-file", str(many), *FORMS[form].split())
    expected, errors = told_by_hubble(hubble(), many, FORMS[form])
    for line, (ours, theirs) in enumerate(zip(found.stdout.splitlines(), expected.splitlines(), strict=False), 1):
        assert ours == theirs, f"line {line}"
    assert (found.stdout, found.stderr) == (expected, errors)


def record() -> None:
    """Write the recorded output anew, by the real command."""
    PRINTED.mkdir(exist_ok=True)
    written(FLOWS, SEED, RECORDED)
    for form, flags in FORMS.items():
        out, errors = told_by_hubble(hubble(), FLOWS, flags)
        (PRINTED / f"{form}.txt").write_text(out)
        (PRINTED / f"{form}.err").write_text(errors)


if __name__ == "__main__":
    record()
