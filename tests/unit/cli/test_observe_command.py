"""`l7proxy observe` as a process: from files and from an agent's socket."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from l7proxy.flows import recorded_lines
from tests.unit.cli.conftest import Agent, Run

DATA = Path(__file__).parents[2] / "data/flows"
SAMPLES = str(DATA / "hubble_samples.jsonl")
LINES = (DATA / "hubble_samples.jsonl").read_text().splitlines()
PRINTED = (DATA / "hubble_samples.txt").read_text().splitlines()
LOST, RELAY = PRINTED[-2:]


def picked(*numbers: int) -> list[str]:
    """Lines of the sample output, by number from 1; lost events are always reported."""
    return [PRINTED[number - 1] for number in numbers] + [LOST]


def test_a_file_prints_as_hubble_prints_it(process: Run) -> None:
    found = process("observe", "--input-file", SAMPLES)
    assert found.returncode == 0
    assert found.stdout.splitlines() == PRINTED[:-1]
    assert found.stderr.splitlines() == [RELAY]


def test_standard_input_is_a_file_too(run: Run) -> None:
    assert run("observe", "--input-file", "-", stdin="\n".join(LINES[:3])).stdout.splitlines() == PRINTED[:3]


@pytest.mark.parametrize(
    ("flags", "numbers"),
    [
        ("--verdict DROPPED --type l7", [11, 15]),
        ("--verdict DROPPED --not --protocol dns", [6, 7, 8, 11]),
        ("--http-status 4+", [12]),
        ("--http-path ^/admin$", [11, 12]),
        ("--to-pod kube-system/ --protocol dns", [13, 15]),
        ("--port 22", [8]),
        ("--from-identity 5678 --not --protocol http", [2]),
        ("--to-label reserved:world", [17]),
        ("--fqdn *.com", [17]),
        ("--type drop --type policy-verdict --to-port 81", [6, 7]),
        ("--namespace kube-system --type trace", [19]),
        ("--ip 93.184.216.0/24", [17]),
        ("--service default/backend", [18]),
        ("--not --pod default/client", []),
        ("--node-name other/", []),
        ("--traffic-direction egress --type trace --protocol tcp", [5, 17, 18]),
        ("--since 2025-11-23T20:00:00.072Z", [21, 22]),
        ("--until 2025-11-23T20:00:00.001Z", [1, 2]),
    ],
)
def test_filters(run: Run, flags: str, numbers: list[int]) -> None:
    found = run("observe", "--input-file", SAMPLES, *flags.split())
    assert (found.stdout.splitlines(), found.returncode) == (picked(*numbers), 0), found.stderr


def test_last_and_first(run: Run) -> None:
    assert run("observe", "--input-file", SAMPLES, "--last", "3").stdout.splitlines() == PRINTED[-3:-1]
    assert run("observe", "--input-file", SAMPLES, "--first", "2").stdout.splitlines() == PRINTED[:2]


def test_json_can_be_read_again(run: Run) -> None:
    once = run("observe", "--input-file", SAMPLES, "-o", "json").stdout
    again = run("observe", "--input-file", "-", "-o", "jsonpb", stdin=once).stdout
    assert once == again
    assert len(once.splitlines()) == len(LINES) - 1, "the state of nodes is on standard error"
    assert json.loads(once.splitlines()[10])["flow"]["verdict"] == "DROPPED"
    assert run("observe", "--input-file", "-", stdin=once).stdout.splitlines() == PRINTED[:-1]


def test_table_and_dict(run: Run) -> None:
    table = run("observe", "--input-file", SAMPLES, "-o", "table", "--port", "22").stdout.splitlines()
    assert table[0].split() == ["TIMESTAMP", "SOURCE", "DESTINATION", "TYPE", "VERDICT", "SUMMARY"]
    assert "   policy-verdict:L3-Only INGRESS   DENIED   " in table[1]
    assert table[2].endswith("EVENTS LOST                      -         CPU(0) - 42" + LOST.partition(" 42")[2])
    blocks = run("observe", "--input-file", SAMPLES, "-o", "dict", "--http-path", "admin").stdout
    assert blocks.count("TYPE: http-re") == 2 and blocks.count("TYPE: EVENTS LOST") == 1
    assert blocks.count("TIMESTAMP:") == 3
    assert blocks.count("------------\n") == 2


def test_lines_that_cannot_be_read_are_named_and_passed_over(run: Run) -> None:
    found = run("observe", "--input-file", "-", stdin="\n".join(["{", LINES[0], "", '{"agent_event":{}}', LINES[1]]))
    assert (found.stdout.splitlines(), found.returncode) == (PRINTED[:2], 0)
    first, second = found.stderr.splitlines()
    assert first.startswith("warning: -:1: not a JSON object")
    assert second.startswith("warning: -:4: no flow")
    assert run("observe", "--input-file", "-", "--silent-errors", stdin="{").stderr == ""


def test_files_may_be_compressed_and_hold_flows_without_the_exporters_envelope(run: Run, tmp_path: Path) -> None:
    bare = "\n".join(json.dumps(json.loads(line)["flow"]) for line in LINES[:5])
    packed = tmp_path / "flows.jsonl.gz"
    packed.write_bytes(gzip.compress(bare.encode()))
    assert run("observe", "--input-file", str(packed)).stdout.splitlines() == PRINTED[:5]
    packed.write_bytes(gzip.compress(bare.encode())[:-20])
    cut = run("observe", "--input-file", str(packed))
    assert cut.returncode == 2 and f"error: --input-file {packed}: " in cut.stderr


def test_a_line_that_is_too_long_is_named_and_passed_over(run: Run) -> None:
    found = run("observe", "--input-file", "-", stdin="\n".join(["[" * (recorded_lines.LONGEST + 9), LINES[0]]))
    assert found.stdout.splitlines() == PRINTED[:1]
    assert found.stderr.startswith("warning: -:1: longer than")


@pytest.mark.parametrize(
    ("flags", "numbers"),
    [
        ("flows --verdict DROPPED --type l7", [11, 15]),
        ("--ip-translation=false --port 22", []),
        ("--not -6 --port 22", [8]),
        ("-A --not --protocol icmp --since 2025-11-23T20:00:00.071Z --until 2025-11-23T20:00:00.072Z", [21]),
        ('--allowlist {"destinationPort":["22"]}', [8]),
        ("--unencrypted --http-status 4+", [12]),
    ],
)
def test_flags_in_the_forms_that_hubble_takes(run: Run, flags: str, numbers: list[int]) -> None:
    found = run("observe", *flags.split(), "--input-file", SAMPLES)
    assert found.returncode == 0, found.stderr
    if numbers:
        assert found.stdout.splitlines() == picked(*numbers)
    else:
        assert "10.0.0.10:50003 (ID:1234) <> 10.0.0.20:22 (ID:5678)" in found.stdout


def test_raw_filters_are_printed_and_nobody_is_asked(run: Run) -> None:
    found = run("observe", "--print-raw-filters", "--pod", "a", "--not", "--port", "53")
    assert found.stdout.splitlines() == [
        "allowlist:",
        """    - '{"source_pod":["a"]}'""",
        """    - '{"destination_pod":["a"]}'""",
        "denylist:",
        """    - '{"source_port":["53"]}'""",
        """    - '{"destination_port":["53"]}'""",
    ]


def test_a_field_mask_keeps_its_fields(run: Run) -> None:
    found = run(
        "observe", "--input-file", SAMPLES, "-o", "json", "--first", "1", "--field-mask", "verdict,source.pod_name"
    )
    assert json.loads(found.stdout)["flow"] == {"verdict": "FORWARDED", "source": {"pod_name": "client"}}


def test_the_agent_is_asked_what_the_flags_say(run: Run, agent: Agent) -> None:
    agent.says("observe", *map(json.loads, LINES[:2]))
    found = run("observe", "--verdict", "DROPPED", "--not", "--port", "53", "--last", "7")
    assert (found.stdout.splitlines(), found.returncode) == (PRINTED[:2], 0)
    either = [{"source_port": ["53"]}, {"destination_port": ["53"]}]
    assert agent.asked == [
        {
            "method": "observe",
            "last": 7,
            "filters": {"whitelist": [{"verdict": ["DROPPED"]}], "blacklist": either},
        }
    ]


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ("", {"last": 20}),
        ("--all", {}),
        ("-f", {"follow": True}),
        ("-f --last 3", {"follow": True, "last": 3}),
        ("--first 3", {"first": 3}),
        ("--since 2025-11-23", {"since": "2025-11-23T00:00:00Z"}),
    ],
)
def test_how_much_is_asked_for(run: Run, agent: Agent, flags: str, asked: dict[str, Any]) -> None:
    agent.says("observe")
    assert run("observe", *flags.split()).returncode == 0
    assert agent.asked == [{"method": "observe", "filters": {}, **asked}]


@pytest.mark.parametrize(
    "flags",
    [
        "--first 1 --last 1",
        "--first 1 --follow",
        "--last 1 --all",
        "--follow -o table",
        "--since whenever",
        "--verdict MAYBE",
        "--pod a --ip 10.0.0.1",
        "--not --follow",
        "--not",
        "--nosuch",
        "--last -1",
        "-o yaml",
        "--http-path (",
        "--input-file /nosuch/file",
    ],
)
def test_wrong_use_is_exit_code_2_without_a_traceback(run: Run, flags: str) -> None:
    found = run("observe", "--all" if flags == "" else "--numeric", *flags.split())
    assert found.returncode == 2
    assert found.stdout == ""
    assert "rror: " in found.stderr
    assert "Traceback" not in found.stderr


def test_an_agents_refusal_is_an_error(run: Run, agent: Agent) -> None:
    found = run("observe")
    assert (found.returncode, found.stderr) == (2, "error: unknown method 'observe'\n")


def test_a_closed_pipe_is_quiet() -> None:
    command = f"{sys.executable} -m l7proxy observe --input-file {SAMPLES} | head -n 1"
    many = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (many.stdout.splitlines(), many.stderr) == (PRINTED[:1], "") or many.stderr == f"{RELAY}\n"


def test_following_ends_quietly_with_ctrl_c(agent: Agent, tmp_path: Path) -> None:
    def answer(question: Any) -> Iterator[Any]:
        yield json.loads(LINES[0])
        for _ in range(600):
            if process.poll() is not None:
                return
            time.sleep(0.05)

    agent.answers["observe"] = answer
    process = subprocess.Popen(
        [sys.executable, "-m", "l7proxy", "observe", "-f", "--run-dir", str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == PRINTED[0] + "\n", "each flow is printed as it comes"
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (130, "")


def test_colours_only_when_asked_for(run: Run) -> None:
    flags = ("observe", "--input-file", SAMPLES)
    assert "\x1b" not in run(*flags).stdout
    assert "\x1b[31mDROPPED\x1b[0m" in run(*flags, "--color", "always").stdout
    assert "\x1b[31mDROPPED\x1b[0m" in run(*flags, "--color", "always", NO_COLOR="1").stdout
