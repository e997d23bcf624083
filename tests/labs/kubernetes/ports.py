"""Prints free ports: python3 ports.py COUNT FIRST

Fixed ones, below those that the kernel gives to outgoing connections: nobody takes them before they are used.
"""

from __future__ import annotations

import socket
import sys


def main(count: int, port: int) -> None:
    """Print the first `count` free ports from `port` on."""
    found: list[int] = []
    while len(found) < count:
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                one.bind(("127.0.0.1", port))
                found.append(port)
            except OSError:
                pass
        port += 1
    print(*found)


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
