"""Settings: file, flags, and an error that names each wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest

from l7proxy.errors import ConfigError
from l7proxy.settings import Settings, load


def config(path: Path, text: str) -> Path:
    file = path / "c.yaml"
    file.write_text(text)
    return file


def test_flags_win_over_the_file_and_none_is_no_flag(tmp_path: Path) -> None:
    file = config(tmp_path, "source: /m\nrun-dir: /run/x\nworkers: 3\nmark_proxy: 0x10\nrefuse: drop\ndrain: 5\n")
    settings = load(file, {"workers": 2, "node": None, "source": Path("/n").as_posix()})
    assert (settings.source, settings.run_dir, settings.workers) == ("/n", Path("/run/x"), 2)
    assert settings.mark_proxy == 16
    assert not settings.kernel.refuse_with_reset
    assert settings.link_socket == Path("/run/x/link.sock")


def test_the_defaults_are_sound_and_an_empty_file_is_fine(tmp_path: Path) -> None:
    assert load(config(tmp_path, "# nothing\n")) == load(None)
    assert load(None).workers >= 1


def test_what_is_dumped_loads_as_the_same(tmp_path: Path) -> None:
    settings = Settings(source="/m", node="n1", flow_headers=("a",), run_dir=Path("/r"), drain=1.5)
    assert load(config(tmp_path, settings.dump())) == settings


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("worker: 2", "unknown setting 'worker'; did you mean workers?"),
        ("nonsense: 2", "unknown setting 'nonsense'"),
        ("workers: two", "workers: Expected `int`, got `str`"),
        ("workers: true", "workers: Expected `int`, got `bool`"),
        ("workers: 0", "workers: must be from 1 to 256, not 0"),
        ("proxy-port: 70000", "proxy_port: must be from 1 to 65535"),
        ("mark-proxy: 3", "mark_proxy: must be a single bit of the packet mark, not 0x3"),
        ("mark-proxy: 1\nmark-upstream: 1", "must be different bits"),
        ("route-table: 254", "route_table: 254 is reserved by the kernel"),
        ("refuse: politely", "refuse: 'politely' is not supported, must be one of reset, drop"),
        ("backend: ebpf", "backend: 'ebpf' is not supported, must be one of auto, nftables, iptables"),
        ("node: 10.0.0.1", "node: '10.0.0.1' is not a valid node name"),
        ("run-dir: 7", "run_dir: "),
        (f"run-dir: /{'x' * 120}", "is too long for the path of a Unix socket"),
        ("- a", "must be a mapping of settings"),
        ("a: [", "c.yaml:2: not valid YAML"),
        ("workers: 1\nworkers: 2", "c.yaml:2: duplicate key 'workers'"),
        ("{workers: 1}\n---\n{workers: 2}", "must be a mapping of settings"),
    ],
)
def test_each_wrong_setting_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = config(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(file)
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none.yaml: cannot read the configuration: No such file"):
        load(tmp_path / "none.yaml")
