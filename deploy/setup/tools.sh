#!/bin/sh
# The kernel tools l7proxy and its lab drive. As root on Debian or Ubuntu they are installed; else they are named.
set -eu
missing=""
need() { # command package
    PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1 || missing="$missing $2"
}
need nft nftables
need iptables-restore iptables
need ipset ipset
need ip iproute2
need curl curl
need unshare util-linux
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "installing$missing"
    # shellcheck disable=SC2086
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $missing; } >/dev/null
else
    echo "error: missing:$missing" >&2
    echo "  Debian, Ubuntu:  sudo apt-get install$missing" >&2
    echo "  Fedora:          sudo dnf install$missing" >&2
    exit 2
fi
