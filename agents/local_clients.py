"""Which user of this machine has connected to a port on the loopback interface.

A loopback port is open to every user of the machine. Linux tells in `/proc/net/tcp` whose each
socket is; other systems do not, and there any user is let in.
"""

import socket
import sys
from pathlib import Path

TABLES = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
_UID_COLUMN = 7


def can_tell() -> bool:
    """Returns whether this system says whose a connection is."""
    return TABLES[0].exists()


def user_of(client: tuple[str, int], server: tuple[str, int]) -> int | None:
    """Returns the user id of the process that connected from `client` to `server`.

    None where the connection is gone already. Both are IPv4 addresses with ports.
    """
    ends = (
        tuple(_written(*end) for end in (client, server)),
        tuple(_written(f"::ffff:{host}", port) for host, port in (client, server)),
    )
    for table, (local, remote) in zip(TABLES, ends, strict=True):
        if not table.exists():
            continue
        for line in table.read_text().splitlines()[1:]:
            columns = line.split()
            if columns[1:3] == [local, remote]:
                return int(columns[_UID_COLUMN])
    return None


def _written(host: str, port: int) -> str:
    """The kernel writes an address as 32-bit numbers in the machine's own byte order."""
    packed = socket.inet_pton(socket.AF_INET6 if ":" in host else socket.AF_INET, host)
    words = (packed[start : start + 4] for start in range(0, len(packed), 4))
    number = "".join(f"{int.from_bytes(word, sys.byteorder):08X}" for word in words)
    return f"{number}:{port:04X}"
