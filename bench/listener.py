"""Opens a transparent listener (IP_TRANSPARENT, ip(7)) and executes nginx, which inherits it by its number in `NGINX`:

python -m bench.listener PORT -- nginx …
"""

from __future__ import annotations

import os
import socket
import sys

IP_TRANSPARENT = 19


def main() -> None:
    port, command = int(sys.argv[1]), sys.argv[3:]
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_IP, IP_TRANSPARENT, 1)
    listener.bind(("0.0.0.0", port))  # otherwise nginx takes 127.0.0.1 as the destination of all connections
    listener.listen(4096)
    listener.set_inheritable(True)
    os.execvpe(command[0], command, {**os.environ, "NGINX": f"{listener.fileno()};"})


if __name__ == "__main__":
    main()
