#!/bin/sh
# programs.sh VENV NAME...: programs that tests and bench stand beside l7proxy (nginx, wrk, haproxy).
# Where one is not there, Debian's package is unpacked below VENV, and not installed: no service starts on this machine,
# now or at the next boot. Names what it cannot get, and goes on: those tests are skipped, those peers left out.
set -eu
venv=$1
shift
unpacked="$venv/debian"

packages() { # those that hold the program, and libraries that a small system lacks
    case $1 in
        nginx) echo nginx ;;
        wrk) echo wrk libluajit-5.1-2 ;;
        haproxy) echo haproxy liblua5.3-0 libopentracing-c-wrapper0 libopentracing1 ;;
    esac
}

fetch() { # into the current directory
    # shellcheck disable=SC2046
    apt-get -qq download $(packages "$1") 2>/dev/null && return
    [ "$(id -u)" = 0 ] && apt-get -qq update >/dev/null 2>&1 || return 1
    # shellcheck disable=SC2046
    apt-get -qq download $(packages "$1") >/dev/null 2>&1
}

unpack() {
    begun=$(mktemp -d)
    if ! (cd "$begun" && fetch "$1"); then
        rm -rf "$begun"
        return 1
    fi
    mkdir -p "$unpacked"
    for package in "$begun"/*.deb; do dpkg-deb --extract "$package" "$unpacked"; done
    rm -rf "$begun"
}

for name in "$@"; do
    if PATH="$venv/bin:$PATH:/usr/sbin:/sbin" command -v "$name" >/dev/null 2>&1; then continue; fi
    if ! command -v dpkg-deb >/dev/null 2>&1 || ! unpack "$name"; then
        echo "not installed: $name (what needs it is left out)" >&2
        continue
    fi
    here=$(cd "$unpacked" && pwd)
    program=$(find "$here/usr/sbin" "$here/usr/bin" -name "$name" 2>/dev/null | head -n 1)
    libraries=$(find "$here/usr/lib" -name '*.so*' -exec dirname {} + 2>/dev/null | sort -u | paste -sd:)
    printf '#!/bin/sh\nexec env LD_LIBRARY_PATH="%s" "%s" "$@"\n' "$libraries" "$program" >"$venv/bin/$name"
    chmod +x "$venv/bin/$name"
    echo "unpacked $name into $unpacked"
done
