"""The hub's client as a conversion uses it: whether it may ask the hub, and what its errors mean.

Without a network the client tries for twenty seconds and tells every try. So whether the hub's
address can be connected to is found out before, and where it cannot, only the client's own cache is
asked.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

ENDPOINT = "https://huggingface.co"
YES = ("1", "ON", "YES", "TRUE")  # as the client reads it
PATIENCE = 5.0  # seconds for a name and a connection
FRESH = 30.0  # seconds that an answer is taken for the present one
PORTS = {"https": 443, "http": 80, "socks5": 1080, "socks5h": 1080}
MEANINGS = {  # by the client's own classes, the narrower one first
    "GatedRepoError": "it is gated, and nobody who may have it is signed in here",
    "RevisionNotFoundError": "the hub has no such revision of it",
    "RepositoryNotFoundError": "the hub has no such repository, or it is private",
}
_asked: dict[tuple[str, int], tuple[float, bool]] = {}


def cache_only() -> str:
    """Why nothing but the client's cache is asked, "" where the hub is."""
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        if value := os.environ.get(name):
            if value.upper() in YES:
                return f"{name} is set"
            break  # the client looks at the first one that is there
    host, port = _address(os.environ.get("HF_ENDPOINT") or ENDPOINT)
    return "" if not host or _connects(host, port) else f"{host} cannot be reached"


def meaning(error: Exception, offline: str) -> str:
    """An error of the client's in words. offline: what `cache_only` said before."""
    if offline:
        return f"{offline}, and the cache of the hub's client does not have all of it"
    kinds = {kind.__name__ for kind in type(error).__mro__}
    for kind, said in MEANINGS.items():
        if kind in kinds:
            return said
    return f"{type(error).__name__}: {str(error)[:300]}"


@contextmanager
def quiet() -> Iterator[None]:
    """The client without its warnings, unless somebody asked for more than these."""
    client = logging.getLogger("huggingface_hub")
    before = client.level
    if before >= logging.WARNING:
        client.setLevel(logging.ERROR)
    try:
        yield
    finally:
        client.setLevel(before)


def _address(url: str) -> tuple[str, int]:
    """Host and port that are connected to for a URL: its own, or a proxy's. No host: unknown."""
    from urllib.request import getproxies, proxy_bypass

    with suppress(ValueError):
        found = urlsplit(url)
        proxies = getproxies()
        proxy = proxies.get(found.scheme) or proxies.get("all")
        if proxy and found.hostname and not proxy_bypass(found.hostname):
            found = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        return found.hostname or "", found.port or PORTS.get(found.scheme, 443)
    return "", 0


def _connects(host: str, port: int) -> bool:
    """Whether a connection comes about, as far as is known. Looking a name up has no time limit of
    its own, so a thread does it."""
    when, found = _asked.get((host, port), (-FRESH, False))
    if time.monotonic() - when < FRESH:
        return found
    made = list[bool]()

    def attempt() -> None:
        with suppress(OSError, ValueError):
            socket.create_connection((host, port), PATIENCE).close()
            made.append(True)

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    _asked[host, port] = time.monotonic(), bool(made)
    return bool(made)
