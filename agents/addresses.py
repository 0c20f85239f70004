"""Network addresses of this project's processes, and the sockets that listen on them."""

import errno
import random
import socket
from dataclasses import dataclass

from prefect_federated.errors import ConfigurationError

_BACKLOG = 1024


@dataclass(frozen=True)
class Address:
    """Where to dial or listen: `host` is a name or an IP address without brackets.

    >>> str(Address.parse("[::1]:8443"))
    '[::1]:8443'
    """

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Returns the address that "host:port" or "[ipv6]:port" names.

        Raises:
            ConfigurationError: it is neither.
        """
        host, _, port = text.rpartition(":")
        is_bracketed = host.startswith("[") and host.endswith("]")
        is_port = port.isascii() and port.isdecimal() and int(port) <= 65535
        if not host or not is_port or (":" in host and not is_bracketed):
            raise ConfigurationError(
                f"{text!r} is not an address. Write host:port, such as 127.0.0.1:4200 or "
                "[::1]:4200."
            )
        return cls(host[1:-1] if is_bracketed else host, int(port))


def listen(address: Address) -> socket.socket:
    """Returns a TCP socket that listens on `address`; port 0 takes a free one.

    Raises:
        ConfigurationError: the port is taken, or the address is not this machine's.
    """
    bound = bind(address)
    try:
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        raise _cannot_listen(address, error) from error
    return bound


def bind(address: Address) -> socket.socket:
    """Returns a TCP socket that has `address` and refuses connections until it listens.

    Raises:
        ConfigurationError: the port is taken, or the address is not this machine's.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    # With its protocol named: of another, asyncio does not know that it is TCP, and leaves on the
    # algorithm that holds back small packets. Each answer would come 40 ms late.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            is_for_both = address.host == "::"
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not is_for_both)
        bound.bind((address.host, address.port))
    except OSError as error:
        bound.close()
        raise _cannot_listen(address, error) from error
    return bound


def free_port() -> int:
    """Returns a port of 127.0.0.1 that nobody has now.

    It is below those that Linux gives to outgoing connections: one of these could take the port
    before its owner listens.
    """
    while True:
        port = random.randrange(20_000, 32_768)
        try:
            bind(Address("127.0.0.1", port)).close()
        except ConfigurationError:
            continue
        return port


def _cannot_listen(address: Address, error: OSError) -> ConfigurationError:
    if error.errno == errno.EADDRINUSE:
        advice = (
            f"Port {address.port} is taken by another process; "
            f"`ss -ltnp 'sport = :{address.port}'` shows which. Stop that one, or choose another "
            "port."
        )
    elif error.errno == errno.EACCES:
        advice = "Ports below 1024 need privileges: choose a higher one."
    else:
        advice = "Give a host name or address of this machine, or 0.0.0.0 for all of them."
    return ConfigurationError(f"cannot listen on {address}: {error.strerror or error}. {advice}")
