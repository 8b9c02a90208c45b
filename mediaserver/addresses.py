"""Which addresses this machine has, and which of them clients are told."""

from __future__ import annotations

import ipaddress

import ifaddr

from mediaserver.settings import Settings


def local_addresses() -> list[str]:
    """Return this machine's IPv4 and IPv6 addresses, loopback last, link-local ones left out."""
    found: list[str] = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            text = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            address = ipaddress.ip_address(text.split("%")[0])
            if not address.is_link_local and not address.is_unspecified and str(address) not in found:
                found.append(str(address))
    return sorted(found, key=lambda text: (ipaddress.ip_address(text).is_loopback, ":" in text))


def advertised(settings: Settings, local: list[str] | None = None) -> tuple[str, ...]:
    """Return the addresses of our ICE candidates, best first.

    As configured, else every local address that the bound sockets can be reached at, and 127.0.0.1.
    """
    if settings.media.advertised:
        return settings.media.advertised
    bound = [ipaddress.ip_address(text) for text in settings.media.bind]
    reachable: list[str] = []
    for text in local_addresses() if local is None else local:
        address = ipaddress.ip_address(text)
        if address.is_loopback and address.version == 6:
            continue  # browsers offer no candidate that could reach it
        if any(one == address or (one.is_unspecified and one.version == address.version) for one in bound):
            reachable.append(text)
    return tuple(reachable)


def public_url(settings: Settings, port: int | None = None, local: list[str] | None = None) -> str:
    """Return the address of the page to tell people, without a slash at the end."""
    if settings.http.public_url:
        return settings.http.public_url.rstrip("/")
    scheme = "https" if settings.tls.enabled else "http"
    host = settings.http.host
    if ipaddress_or_none(host) is not None and ipaddress.ip_address(host).is_unspecified:
        told = advertised(settings, local)
        host = told[0] if told else "127.0.0.1"
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port or settings.http.port}"


def ipaddress_or_none(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address ``host`` spells, or None if it is a name."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
