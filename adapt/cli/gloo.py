"""The one place that touches private parts of JAX: at which address the collectives of a CPU
listen.

JAX takes the address that the host's own name stands for. In Debian's /etc/hosts that is 127.0.1.1,
where each host finds itself, and a container's name may stand for nothing. JAX has no option for
it. Where a later JAX has moved these parts, nothing is done, and the hosts' names have to be right.
"""

import contextlib
import functools
import importlib
import ipaddress
import socket
from collections.abc import Iterator
from typing import Any

import jax

from adapt.errors import MeshError


def listen_where_others_reach(timeout: float) -> None:
    """Have the collectives of a CPU listen at the address of this host that the other hosts see.

    Call it between ``jax.distributed.initialize`` and the first collective; ``timeout`` is in
    seconds.
    """
    if jax.config.values["jax_cpu_collectives_implementation"] == "gloo":
        with contextlib.suppress(ImportError, AttributeError):
            rebind_collectives(timeout)


def rebind_collectives(timeout: float) -> None:
    from jax._src import distributed, xla_bridge
    from jax.extend.backend import register_backend_factory

    run: Any = distributed.global_state
    compiled: Any = importlib.import_module("jaxlib._jax")
    address = address_facing(*split_address(run.coordinator_address))
    run.client.key_value_set(f"adapt/{run.process_id}", address)
    if is_loopback(address):
        # Process 0 is on this host, under a name that is known only here: take the address that
        # another process sees.
        for other in other_addresses(run, timeout):
            if not is_loopback(other):
                address = address_facing(other)
                break
    collectives = compiled.make_gloo_tcp_collectives(run.client, hostname=address)
    client = functools.partial(xla_bridge.make_cpu_client, collectives)
    register_backend_factory("cpu", client, priority=0, fail_quietly=False)


def other_addresses(run: Any, timeout: float) -> Iterator[str]:
    """What each process of the run said of itself, its own word included."""
    for number in range(run.num_processes):
        yield run.client.blocking_key_value_get(f"adapt/{number}", int(1000 * timeout))


def is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def split_address(coordinator: str) -> tuple[str, int]:
    """Host and port of ``host0:1234``, ``10.0.0.1:1234`` or ``[fd00::1]:1234``."""
    host, port = coordinator.rsplit(":", 1)
    return host.strip("[]"), int(port)


def address_facing(host: str, port: int = 9) -> str:
    """The address of this host that ``host`` sees, IPv4 where there are both. Nothing is sent.

    Raises :class:`MeshError` where no route leads there.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
    for family, kind, _, _, address in sorted(found, key=lambda entry: entry[0]):
        # A family without a route is passed over.
        with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
            probe.connect(address)
            return probe.getsockname()[0]
    raise MeshError(f"no address of this host faces {host}: look at its routes")
