"""`policy learn` and `policy replay` on the command line: files, streams, exit codes, messages."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.seen_flows import lines, made, pod
from tests.unit.cli.conftest import Agent, Run

FRONT, BACK = pod("front"), pod("back")
SOME = lines(
    made(FRONT, BACK, verdict="REDIRECTED"),
    made(FRONT, BACK, http="GET http://back/api/1"),
    made(FRONT, BACK, http="GET http://back/admin", verdict="DROPPED"),
)
HUBBLE = Path(__file__).resolve().parents[2] / "data" / "flows" / "hubble_samples.jsonl"


def test_to_standard_output(run: Run) -> None:
    done = run("policy", "learn", "--flows", "-", stdin=SOME)
    assert done.returncode == 0
    names = [one["metadata"]["name"] for one in yaml.safe_load_all(done.stdout)]
    assert names == ["learned-back", "learned-front"]
    assert "2 policies, 2 new entries, from 3 flows" in done.stderr


def test_replay_of_what_was_learned_changes_nothing_and_a_forbidden_request_stays_refused(
    run: Run, tmp_path: Path
) -> None:
    flows, new = tmp_path / "flows.jsonl.gz", tmp_path / "new"
    flows.write_bytes(gzip.compress(SOME.encode()))
    assert run("policy", "learn", "--flows", str(flows), "-o", f"{new}/").returncode == 0
    assert sorted(path.name for path in new.iterdir()) == ["default.learned-back.yaml", "default.learned-front.yaml"]
    assert run("policy", "validate", str(new)).returncode == 0
    done = run("policy", "replay", "--flows", str(flows), "-f", str(new), "-o", "json")
    assert (done.returncode, json.loads(done.stdout)["unchanged"]) == (0, 3)
    admin = lines(made(FRONT, BACK, http="GET http://back/admin"))
    done = run("policy", "replay", "--flows", "-", "-f", str(new), stdin=admin)
    assert done.returncode == 1
    assert "no rule matched; nearest: policy default/learned-back rule 1" in done.stdout
    assert "1 of 1 flows would change" in done.stdout


def test_again_into_the_same_directory_only_adds(run: Run, tmp_path: Path) -> None:
    new = f"{tmp_path}/new/"
    run("policy", "learn", "--flows", "-", "-o", new, stdin=SOME)
    more = lines(made(FRONT, BACK, http="GET http://back/other"))
    done = run("policy", "learn", "--flows", "-", "-f", new, "-o", new, stdin=more)
    assert "2 policies, 1 new entries" in done.stderr
    text = (tmp_path / "new" / "default.learned-back.yaml").read_text()
    assert "/api/[^/?]+" in text
    assert "/other" in text
    assert run("policy", "replay", "--flows", "-", "-f", new, stdin=SOME + more).returncode == 0


def test_bad_lines_are_named_and_skipped(run: Run) -> None:
    bad = "{\n" + SOME + '[1]\n{"flow": {"l4": 3}}\n{}\n\xff\n'
    done = run("policy", "learn", "--flows", "-", stdin=bad)
    assert done.returncode == 0
    assert [line.split(":")[2] for line in done.stderr.splitlines() if "skipped" in line] == ["1", "5", "6", "7", "8"]
    done = run("policy", "learn", "--flows", "-", "--strict", stdin=bad)
    assert done.returncode == 2
    assert done.stderr.startswith("error: -:1: ")


def test_a_line_that_is_too_long_is_skipped(run: Run) -> None:
    done = run("policy", "learn", "--flows", "-", stdin='{"flow": "' + "x" * (1 << 21) + '"}\n' + SOME)
    assert "warning: -:1: longer than" in done.stderr
    assert done.returncode == 0


def test_flows_of_hubble(run: Run, tmp_path: Path) -> None:
    done = run("policy", "learn", "--flows", str(HUBBLE), "-o", str(tmp_path / "one.yaml"))
    assert done.returncode == 0
    found = {one["metadata"]["name"]: one["spec"] for one in yaml.safe_load_all((tmp_path / "one.yaml").read_text())}
    assert set(found) == {"learned-backend", "learned-client"}
    assert run("policy", "validate", str(tmp_path / "one.yaml")).returncode == 0
    assert "flows were lost when they were recorded" in done.stderr


def test_flows_without_the_exporters_envelope(run: Run) -> None:
    bare = json.dumps(made(FRONT, BACK, 443)) + "\n"
    assert run("policy", "learn", "--flows", "-", stdin=bare).returncode == 0


def test_the_agents_flows(run: Run, agent: Agent) -> None:
    agent.says("observe", *map(json.loads, SOME.splitlines()))
    assert "learned-back" in run("policy", "learn").stdout
    assert agent.asked == [{"method": "observe"}]


def test_nothing_to_learn_is_exit_code_1(run: Run) -> None:
    done = run("policy", "learn", "--flows", "-", stdin="")
    assert done.returncode == 1
    assert "nothing was learned" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("learn", "--flows", "/nowhere/x"), "/nowhere/x: No such file or directory"),
        (("learn", "--flows", "-", "--follow"), "--follow cannot be combined"),
        (("learn", "--flows", "-", "--since", "soon"), "--since soon"),
        (("learn", "--flows", "-", "-f", "/nowhere/y"), "-f /nowhere/y: no such file"),
        (("learn", "--flows", "-", "-o", "/nowhere/z"), "-o /nowhere/z: No such file"),
        (("replay", "--flows", "-", "-f", "/nowhere/y"), "-f /nowhere/y: no such file"),
        (("replay", "--flows", "-"), "Missing option"),
    ],
)
def test_bad_input_is_exit_code_2(run: Run, arguments: tuple[str, ...], message: str) -> None:
    done = run("policy", *arguments, stdin=SOME)
    assert done.returncode == 2
    assert message in done.stderr


def test_an_earlier_policy_of_another_name_is_not_left_beside_the_new_one(run: Run, tmp_path: Path) -> None:
    run("policy", "learn", "--flows", "-", "-o", f"{tmp_path}/mine.yaml", stdin=SOME)
    done = run("policy", "learn", "--flows", "-", "-f", str(tmp_path), "-o", f"{tmp_path}/", stdin=SOME)
    assert done.returncode == 2
    assert "holds the earlier mine.yaml: write to another directory" in done.stderr


def test_a_header_that_a_rule_needs_is_not_guessed(run: Run, tmp_path: Path) -> None:
    (tmp_path / "new.yaml").write_text("""
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: p, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: back}}
  ingress:
  - fromEndpoints: [{}]
    toPorts: [{ports: [{port: "80", protocol: TCP}], rules: {http: [{headers: ["X-Token: a"]}]}}]
""")
    done = run("policy", "replay", "--flows", "-", "-f", str(tmp_path / "new.yaml"), stdin=SOME)
    assert done.returncode == 0
    assert "depends on what flows do not record: header x-token" in done.stdout
    assert "0 of 3 flows would change, 1 would not, 2 cannot be judged" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_following_and_what_was_seen_is_written(
    agent: Agent, tmp_path: Path, number: signal.Signals
) -> None:
    """SIGTERM is what timeout(1) sends. A shell may have set SIGINT to be ignored in its background jobs."""
    read, write = os.pipe()

    def answer(question: Mapping[str, Any]) -> Iterator[Any]:
        for _ in range(500):  # more than the socket holds: what was sent first has been read when the last is sent
            yield from map(json.loads, SOME.splitlines())
        os.write(write, b"x")
        stopped.wait(60)

    stopped = threading.Event()
    agent.answers["observe"] = answer
    target = tmp_path / "new.yaml"
    command = [sys.executable, "-m", "l7proxy", "policy", "learn", "--follow", "-o", str(target)]
    with subprocess.Popen(
        [*command, "--run-dir", str(tmp_path)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as process:
        os.read(read, 1)
        process.send_signal(number)
        assert process.wait(60) == 0
        stopped.set()
    os.close(read)
    os.close(write)
    assert "learned-back" in target.read_text()


@pytest.mark.parametrize("command", ["learn", "replay"])
def test_a_file_without_a_single_flow_is_an_error_that_quotes_its_lines(run: Run, tmp_path: Path, command: str) -> None:
    (tmp_path / "new.yaml").write_text("# nothing\n")
    bad = tmp_path / "bad.jsonl"
    bad.write_text('<html>\n{"some": "thing"}\n\n[1]\n"x"\n')
    done = run("policy", command, "--flows", str(bad), "-f", str(tmp_path / "new.yaml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{bad}: holds no flows of l7proxy or Hubble: {bad}:1: not a JSON object" in done.stderr
    assert f"{bad}:2: no flow, lost events or node status; {bad}:4: " in done.stderr
    assert done.stderr.rstrip().endswith("; and 1 more")
