"""Reads the address of a listener, `HOST:PORT`, as settings give it."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address

from l7proxy.errors import ConfigError


def listener(text: str) -> tuple[IPv4Address | IPv6Address, int]:
    """As `host_and_port`; `:4244` is every address of the node."""
    return host_and_port(f"[::]{text}" if text.startswith(":") else text)


def host_and_port(text: str) -> tuple[IPv4Address | IPv6Address, int]:
    """The parts of `127.0.0.1:9878` or `[::1]:9878`. ConfigError when it is neither."""
    host, _, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        address = ip_address(host[1:-1] if bracketed else host)
    except ValueError as error:
        raise ConfigError(f"must be ADDRESS:PORT, as 127.0.0.1:9878 or [::1]:9878, not {text!r:.80}") from error
    if (address.version == 6) != bracketed:
        raise ConfigError(f"an IPv6 address needs brackets, as [::1]:9878, an IPv4 address none: {text!r:.80}")
    if not port.isascii() or not port.isdigit() or not 1 <= int(port[:6]) <= 65535:
        raise ConfigError(f"the port must be a number from 1 to 65535, not {port!r:.40}")
    return address, int(port)
