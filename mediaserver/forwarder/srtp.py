"""SRTP in place on memory that cffi owns, by the libsrtp that pylibsrtp brings.

``pylibsrtp.Session`` copies a packet three times and takes 5 µs; its libsrtp alone takes 1.1 µs, so its
functions are called directly. Distributions' own libsrtp are not used: Debian's is built on NSS and 2 to 6
times slower.
"""

from __future__ import annotations

from typing import Any, Final

from pylibsrtp import Policy, Session, _binding

from mediaserver.forwarder.interface import ForwarderError, Profile

lib: Final[Any] = _binding.lib
srtp_ffi: Final[Any] = _binding.ffi

OK: Final = 0
REPLAYED: Final = (9, 10)
"""``srtp_err_status_replay_fail`` and ``…_replay_old``."""

REPLAY_WINDOW: Final = 1024
"""Packets; a retransmission by the publisher without RTX may come a second late."""

TRAILER_BYTES: Final = 16 + 4 + 4
"""At most added by protecting: tag, SRTCP index."""


class SrtpDirection:
    """One direction of one peer: a libsrtp session for any SSRC, and the session that owns it."""

    __slots__ = ("_owner", "session")

    def __init__(self, profile: Profile, key: bytes, salt: bytes, *, inbound: bool) -> None:
        if len(key) != profile.key_bytes or len(salt) != profile.salt_bytes:
            raise ForwarderError(
                f"{profile.name} takes a key of {profile.key_bytes} and a salt of {profile.salt_bytes} bytes"
            )
        policy = Policy(
            key=key + salt,
            ssrc_type=Policy.SSRC_ANY_INBOUND if inbound else Policy.SSRC_ANY_OUTBOUND,
            srtp_profile=int(profile),
        )
        policy.window_size = REPLAY_WINDOW
        # A packet sent again without RTX is sent bit by bit the same, so its nonce protects one message only.
        policy.allow_repeat_tx = not inbound
        self._owner = Session(policy)
        self.session: Any = self._owner._srtp[0]
