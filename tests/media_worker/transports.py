"""A transport over a forwarder that tests drive by hand: nothing runs by itself, taps go nowhere."""

from __future__ import annotations

from mediaserver.media.layer_choice import SECOND_NS
from mediaserver.media.transport import Transport
from tests.forwarder.ends import World


def transport_of(world: World, consent_ns: int = SECOND_NS) -> Transport:
    """Make the transport of a world's forwarder."""
    return Transport(
        world.forwarder,
        candidates=[],
        consent_ns=consent_ns,
        tapped=lambda take: None,
        tap_dropped=lambda event: None,
    )
