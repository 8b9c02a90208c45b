"""Check what callers of a forwarder give; the same for both implementations."""

from __future__ import annotations

from mediaserver.forwarder.interface import ForwarderError, RouteParameters, StreamParameters


def check_stream(parameters: StreamParameters) -> None:
    """Raise ``ForwarderError`` if a stream's parameters contradict each other."""
    red = parameters.red_payload_type
    if red is not None and (parameters.kind != "audio" or red == parameters.payload_type):
        raise ForwarderError(f"RED is for sound, under a payload type of its own: {red}")


def check_route(parameters: RouteParameters) -> None:
    """Raise ``ForwarderError`` if a route's parameters contradict each other or the RTP rules."""
    if len(parameters.mid.encode()) > 16:
        raise ForwarderError("a mid has at most 16 bytes")
    if (parameters.rtx_ssrc is None) != (parameters.rtx_payload_type is None):
        raise ForwarderError("RTX takes both an SSRC and a payload type")
    for uri, value in parameters.extensions.items():
        if not 1 <= value <= 255 or value == 15:
            raise ForwarderError(f"no such header extension id: {value} ({uri})")
    first = parameters.first_sequence
    if first is not None and not 0 <= first < 0x8000:
        raise ForwarderError(f"a first sequence number is below 32768, not {first}")


def layers_wanted(spatial: int | None, temporal: int | None) -> tuple[int, int]:
    """Return the highest layers as bytes, 255 for all. Raises ``ForwarderError``."""
    wanted = tuple(255 if layer is None else layer for layer in (spatial, temporal))
    if any(not 0 <= layer <= 255 for layer in wanted):
        raise ForwarderError(f"no such layers: {spatial}, {temporal}")
    return wanted[0], wanted[1]
