"""Ports for the processes of one launch: free ones are chosen, taken ones are named with their holder."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Collection

from llava_core.errors import BadRequest

_TRIES = 200


def choose_port(
    named: int | None, default: int, *, option: str, is_free: Callable[[int], bool], given_out: Collection[int] = ()
) -> int:
    """`named` if it is free, else BadRequest; without a name the first free port from `default` up."""
    if named is not None:
        if not 0 < named < 65536:
            raise BadRequest(f"{option} {named}: a port is a number from 1 to 65535", param=option)
        if named in given_out:
            raise BadRequest(f"{option} {named} is named twice; give each process its own port", param=option)
        if not is_free(named):
            raise BadRequest(f"{option} {named}: {taken_sentence(named)}; stop that or name another", param=option)
        return named
    for port in range(default, min(default + _TRIES, 65536)):
        if port not in given_out and is_free(port):
            return port
    raise BadRequest(f"no port from {default} to {default + _TRIES - 1} is free; name one with {option}", param=option)


def is_free_on(host: str) -> Callable[[int], bool]:
    """Whether a server could listen on `host` at a port; BadRequest for a host that is not this machine's."""

    def is_free(port: int) -> bool:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probe:
                # As servers do: an address whose last connections are still closing is free.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except socket.gaierror:
            raise BadRequest(f"--host {host}: no such host; 127.0.0.1 and 0.0.0.0 are usual", param="--host") from None
        except PermissionError:
            raise BadRequest(f"port {port} may only be used by root; name one above 1023", param="--port") from None
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise BadRequest(f"--host {host} is not an address of this machine", param="--host") from None
            return False
        return True

    return is_free


def taken_sentence(port: int) -> str:
    """Who listens at `port`, as far as this user may know."""
    import psutil

    try:
        listeners = [
            connection.pid
            for connection in psutil.net_connections(kind="tcp")
            if connection.status == psutil.CONN_LISTEN and connection.laddr and connection.laddr.port == port
        ]
        if pid := next((pid for pid in listeners if pid), None):
            return f"port {port} is taken by pid {pid} ({_command(psutil.Process(pid))})"
    except (psutil.Error, PermissionError):
        pass
    return f"port {port} is taken by a process this user may not see"


def _command(process: object) -> str:
    import psutil

    assert isinstance(process, psutil.Process)
    command = " ".join(process.cmdline()) or process.name()
    return command if len(command) <= 120 else command[:117] + "…"
