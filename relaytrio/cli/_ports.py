"""Ports on loopback for replica processes.

A replica that is killed comes back on its port, so the port must not be lost in between. One from the range that the
system gives to outgoing connections can be: a peer that dials the dead replica may even be connected to itself. So
free ports are taken from below that range (Linux: 32768 and up; others: 49152 and up). Who calls: `_cluster.py`.
"""

from __future__ import annotations

import errno
import random
import socket

from ._status import NotDone

HOST = "127.0.0.1"
_FREE = range(20000, 30000)
_TRIES = 200


def port_is_free(port: int) -> bool:
    """Whether a replica could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As a server binds: the last connections of a former process there are no obstacle.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
        return True


def choose_ports(wanted: list[int]) -> list[int]:
    """The ports of replicas: as wanted, and free ones for zeros, ascending, each another. Raises `NotDone`."""
    taken: set[int] = set()
    for port in wanted:
        if port in taken or (port and not port_is_free(port)):
            raise NotDone(f"port {port} of {HOST} is taken")
        taken.update([port] if port else [])
    free: list[int] = []
    for _ in range(wanted.count(0)):
        free.append(_free_port({*taken, *free}))
    rest = iter(sorted(free))
    return [port or next(rest) for port in wanted]


def _free_port(taken: set[int]) -> int:
    for port in random.sample(_FREE, _TRIES):
        if port not in taken and port_is_free(port):
            return port
    raise NotDone(f"no free port found on {HOST}")
