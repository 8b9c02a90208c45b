"""DTLS-SRTP without sockets: our end against pyOpenSSL clients in memory."""

from __future__ import annotations

import pytest
from aiortc.rtcdtlstransport import (
    SRTP_PROFILES,
    RTCCertificate,
    SRTPProtectionProfile,
    generate_certificate,
)
from cryptography.hazmat.primitives.asymmetric import ec
from OpenSSL import SSL

from mediaserver.media.dtls import (
    GCM,
    HANDSHAKE_NS,
    MTU,
    SHA1,
    DtlsEndpoint,
    DtlsIdentity,
    DtlsState,
    SrtpProfile,
    is_well_formed,
    split_datagrams,
)
from mediaserver.media.ice import SECOND_NS

NOW = 1_000 * SECOND_NS


class Client:
    """A DTLS peer over memory BIOs, as aiortc configures it."""

    def __init__(
        self,
        profiles: list[SRTPProtectionProfile] | None = None,
        *,
        certificate: RTCCertificate | None = None,
        server: bool = False,
    ) -> None:
        self.certificate = certificate or RTCCertificate.generateCertificate()
        context = self.certificate._create_ssl_context(profiles or SRTP_PROFILES)
        self.connection = SSL.Connection(context, None)
        if server:
            self.connection.set_accept_state()
        else:
            self.connection.set_connect_state()
        self.connection.set_ciphertext_mtu(MTU)
        self.done = False

    @property
    def fingerprints(self) -> list[tuple[str, str]]:
        return [(f.algorithm, f.value) for f in self.certificate.getFingerprints()]

    def step(self, datagrams: list[bytes]) -> list[bytes]:
        for datagram in datagrams:
            self.connection.bio_write(datagram)
        try:
            self.connection.do_handshake()
            self.done = True
        except SSL.WantReadError:
            pass
        return self.flush()

    def flush(self) -> list[bytes]:
        try:
            return split_datagrams(self.connection.bio_read(65536))
        except SSL.WantReadError:
            return []


def shake(client: Client, server: DtlsEndpoint) -> None:
    """Exchange datagrams until both are silent."""
    flight = client.step([])
    for _ in range(10):
        answer = [out for datagram in flight for out in server.receive(datagram, NOW)]
        if not answer:
            break
        flight = client.step(answer)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (None, GCM),
        ([b"SRTP_AES128_CM_SHA1_80", b"SRTP_AEAD_AES_128_GCM"], GCM),
        ([b"SRTP_AES128_CM_SHA1_80"], SHA1),
    ],
)
def test_both_ends_agree_on_profile_and_keys(names: list[bytes] | None, expected: object) -> None:
    profiles = None if names is None else [p for n in names for p in SRTP_PROFILES if p.openssl_profile == n]
    client = Client(profiles)
    server = DtlsEndpoint(DtlsIdentity(), client.fingerprints, NOW)
    shake(client, server)
    assert client.done
    assert server.state is DtlsState.CONNECTED
    keys = server.keys
    assert keys is not None
    assert keys.profile is expected
    profile = next(p for p in SRTP_PROFILES if p.openssl_profile.decode() == keys.profile.name)
    block = client.connection.export_keying_material(
        b"EXTRACTOR-dtls_srtp", 2 * (profile.key_length + profile.salt_length)
    )
    assert profile.get_key_and_salt(block, 0) == keys.rx_key + keys.rx_salt
    assert profile.get_key_and_salt(block, 1) == keys.tx_key + keys.tx_salt
    assert "rx_key" not in repr(keys)


def test_wrong_fingerprint_fails_and_gives_no_keys() -> None:
    identity = DtlsIdentity()
    client = Client()
    wrong = [("sha-256", Client().fingerprints[0][1])]
    server = DtlsEndpoint(identity, wrong, NOW)
    shake(client, server)
    assert server.state is DtlsState.FAILED
    assert server.error == "dtls_fingerprint_mismatch"
    assert server.keys is None
    assert identity.counters.fingerprint_mismatch == 1


def test_one_wrong_of_several_fingerprints_fails() -> None:
    client = Client()
    expected = [client.fingerprints[0], ("sha-512", Client().fingerprints[2][1])]
    server = DtlsEndpoint(DtlsIdentity(), expected, NOW)
    shake(client, server)
    assert server.error == "dtls_fingerprint_mismatch"


def test_unknown_hash_alone_is_no_proof() -> None:
    client = Client()
    server = DtlsEndpoint(DtlsIdentity(), [("md5", "AA:BB")], NOW)
    shake(client, server)
    assert server.error == "dtls_fingerprint_mismatch"


def test_truncated_at_every_length_is_dropped_and_the_handshake_goes_on() -> None:
    identity = DtlsIdentity()
    client = Client()
    server = DtlsEndpoint(identity, client.fingerprints, NOW)
    hello = client.step([])[0]
    for length in range(len(hello)):
        assert server.receive(hello[:length], NOW) == []
    assert identity.counters.malformed == len(hello)
    flight = [hello]
    for _ in range(10):
        flight = client.step([out for datagram in flight for out in server.receive(datagram, NOW)])
    assert server.state is DtlsState.CONNECTED


def test_rubbish_records_do_not_end_a_handshake() -> None:
    client = Client()
    server = DtlsEndpoint(DtlsIdentity(), client.fingerprints, NOW)
    for kind in range(20, 64):
        rubbish = bytes([kind, 254, 253]) + bytes(8) + b"\0\x10" + bytes(range(16))
        assert is_well_formed(rubbish) == (kind < 24)
        server.receive(rubbish, NOW)
    shake(client, server)
    assert server.state is DtlsState.CONNECTED


def test_lost_flight_is_sent_again_and_silence_gives_up() -> None:
    client = Client()
    server = DtlsEndpoint(DtlsIdentity(), client.fingerprints, NOW)
    first = server.receive(client.step([])[0], NOW)
    assert first
    assert all(len(datagram) <= MTU for datagram in first)
    due = server.next_timer()
    assert due is not None
    assert NOW < due <= NOW + 2 * SECOND_NS
    server.handle_timer(NOW + HANDSHAKE_NS)
    assert (server.state, server.error) == (DtlsState.FAILED, "dtls_timeout")
    assert server.receive(b"\x16\xfe\xfd" + bytes(10), NOW) == []


def test_goodbye_of_either_side_closes() -> None:
    client = Client()
    server = DtlsEndpoint(DtlsIdentity(), client.fingerprints, NOW)
    shake(client, server)
    client.connection.shutdown()
    for datagram in client.flush():
        server.receive(datagram, NOW)
    assert server.state is DtlsState.CLOSED

    client = Client()
    server = DtlsEndpoint(DtlsIdentity(), client.fingerprints, NOW)
    shake(client, server)
    goodbye = server.close()
    assert goodbye
    for datagram in goodbye:
        client.connection.bio_write(datagram)
    with pytest.raises(SSL.ZeroReturnError):
        client.connection.recv(100)


def test_application_data_is_read_and_thrown_away() -> None:
    client = Client()
    server = DtlsEndpoint(DtlsIdentity(), client.fingerprints, NOW)
    shake(client, server)
    client.connection.send(b"sctp" * 100)
    for datagram in client.flush():
        assert server.receive(datagram, NOW) == []
    assert server.state is DtlsState.CONNECTED


def test_flights_are_cut_at_record_borders() -> None:
    record = b"\x16\xfe\xfd" + bytes(8) + (500).to_bytes(2, "big") + bytes(500)
    assert [len(d) for d in split_datagrams(record * 5)] == [1026, 1026, 513]
    assert split_datagrams(b"") == []


def shake_as_client(peer: Client, ours: DtlsEndpoint) -> None:
    """Let our end begin and exchange datagrams until both are silent."""
    flight = ours.begin(NOW)
    for _ in range(10):
        answer = peer.step(flight)
        if not answer:
            break
        flight = [out for datagram in answer for out in ours.receive(datagram, NOW)]


@pytest.mark.parametrize("profile", [GCM, SHA1])
def test_as_client_of_a_passive_peer_both_agree_on_keys(profile: SrtpProfile) -> None:
    taken = [p for p in SRTP_PROFILES if p.openssl_profile.decode() == profile.name]
    peer = Client(taken, server=True)
    ours = DtlsEndpoint(DtlsIdentity(), peer.fingerprints, NOW, client=True)
    shake_as_client(peer, ours)
    assert peer.done
    assert ours.state is DtlsState.CONNECTED
    keys = ours.keys
    assert keys is not None
    assert keys.profile is profile
    block = peer.connection.export_keying_material(b"EXTRACTOR-dtls_srtp", 2 * (profile.key + profile.salt))
    assert taken[0].get_key_and_salt(block, 0) == keys.tx_key + keys.tx_salt
    assert taken[0].get_key_and_salt(block, 1) == keys.rx_key + keys.rx_salt


def test_as_client_a_wrong_fingerprint_fails() -> None:
    peer = Client(server=True)
    ours = DtlsEndpoint(DtlsIdentity(), Client().fingerprints, NOW, client=True)
    shake_as_client(peer, ours)
    assert (ours.state, ours.error, ours.keys) == (DtlsState.FAILED, "dtls_fingerprint_mismatch", None)


def test_as_client_it_begins_once_and_repeats_a_lost_hello() -> None:
    peer = Client(server=True)
    ours = DtlsEndpoint(DtlsIdentity(), peer.fingerprints, NOW, client=True)
    assert ours.next_timer() == NOW + HANDSHAKE_NS
    hello = ours.begin(NOW)
    assert len(hello) == 1
    assert ours.begin(NOW) == []
    due = ours.next_timer()
    assert due is not None
    assert NOW < due <= NOW + 2 * SECOND_NS
    ours.handle_timer(NOW + HANDSHAKE_NS)
    assert ours.error == "dtls_timeout"


def test_as_server_it_does_not_begin() -> None:
    assert DtlsEndpoint(DtlsIdentity(), Client().fingerprints, NOW).begin(NOW) == []


def on_curve(curve: ec.EllipticCurve) -> RTCCertificate:
    """Make a certificate as GnuTLS makes it for FFmpeg, but for the curve."""
    key = ec.generate_private_key(curve)
    return RTCCertificate(key=key, cert=generate_certificate(key))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_certificates_on_these_curves_are_taken(curve: ec.EllipticCurve) -> None:
    client = Client(certificate=on_curve(curve))
    server = DtlsEndpoint(DtlsIdentity(), client.fingerprints, NOW)
    shake(client, server)
    assert server.state is DtlsState.CONNECTED


def test_a_curve_openssl_does_not_take_is_named() -> None:
    """FFmpeg over GnuTLS has such a certificate (docs/clients.md)."""
    client = Client(certificate=on_curve(ec.SECP224R1()))
    server = DtlsEndpoint(DtlsIdentity(), client.fingerprints, NOW)
    flight = client.step([])
    flight = client.step([out for one in flight for out in server.receive(one, NOW)])
    for datagram in flight:
        server.receive(datagram, NOW)
    assert (server.state, server.error) == (DtlsState.FAILED, "dtls_wrong_curve")
