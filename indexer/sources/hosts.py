"""Hosts that may be fetched from: what an operator writes, as policies of ssrfguard."""

import re
from dataclasses import replace
from functools import cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from urllib.parse import urlsplit

from ssrfguard import DEFAULT_DENIED, AddressTable, Block, Policy, Reach

from indexer.errors import BuildError

# No name may lead to these either. Of IPv6 only 2000::/3 is given out; ssrfguard 0.4.1 leaves the rest open where the
# registries of IANA are silent, such as ::ffff:0:127.0.0.1 (IPv4-translated, RFC 2765).
_BLOCKS = (
    ("::/0", "not global unicast", Reach.DENIED),
    ("2000::/3", "global unicast", Reach.PERMITTED),
    ("168.63.129.16/32", "Azure's platform address", Reach.DENIED),
    ("161.26.0.0/16", "IBM Cloud's service network", Reach.DENIED),
    ("166.8.0.0/14", "IBM Cloud's service network", Reach.DENIED),
    ("199.36.153.4/30", "Google's private API addresses", Reach.DENIED),
    ("199.36.153.8/30", "Google's private API addresses", Reach.DENIED),
)
_DENIED = AddressTable(
    DEFAULT_DENIED.blocks
    + tuple(Block(ip_network(network), name, "kindred", reach) for network, name, reach in _BLOCKS)
)
_PUBLIC = Policy(denied_networks=_DENIED)
_LOOPBACK = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


@cache
def guards(hosts: tuple[str, ...]) -> tuple[Policy, ...]:
    """Return a policy for each host, those that say more first.

    Raises:
        BuildError: an entry is no host.
    """
    return tuple(_guard(host) for host in sorted(hosts, key=lambda host: host.count("*") + (host == "*")))


def _guard(host: str) -> Policy:
    if host == "*":
        return _PUBLIC
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname, parts.port
        if not name or parts.netloc != host or re.search(r"[\s@]", host):
            raise ValueError("it has more or less than a host and a port")  # noqa: TRY301 - told like all others
        networks = _networks(name)
        policy = replace(_PUBLIC, allowed_hosts=frozenset({name}), allowed_networks=networks)
        return replace(policy, allowed_ports=frozenset({port})) if port else policy
    except ValueError as error:
        raise BuildError(
            f"KINDRED_FETCH_HOSTS is a list of hosts such as images.example.com, *.example.com, 10.0.0.5:8080 or *; "
            f"{host!r} is none: {error}."
        ) from error


def _networks(name: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the private addresses that an entry allows: the one that it is itself."""
    if name == "localhost":
        return _LOOPBACK
    try:
        return (ip_network(ip_address(name)),)
    except ValueError:
        return ()
