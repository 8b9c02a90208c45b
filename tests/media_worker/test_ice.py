"""ICE-lite without sockets: RFC 5769's request, hostile datagrams, binding, consent."""

from __future__ import annotations

import pytest
from aioice import stun

from mediaserver.media.ice import (
    CONNECT_NS,
    DISCONNECTED_NS,
    FAILURES_PER_SOURCE,
    REBIND_NS,
    SECOND_NS,
    Credentials,
    IceAgent,
    IceState,
)
from mediaserver.media.stun import StunError, read

HERE = ("192.0.2.1", 4000)
ELSEWHERE = ("192.0.2.1", 4001)
NOW = 1_000 * SECOND_NS

# RFC 5769 section 2.1: request with USERNAME "evtj:h6vY", password "VOkJxbRl1RmTxUk/WvJxBt", ICE-CONTROLLED.
SAMPLE_REQUEST = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae"
    "802200105354554e207465737420636c69656e74"
    "002400046e0001ff80290008932ff9b151263b36"
    "000600096576746a3a68367659202020"
    "000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2"
    "80280004e57a3bcf"
)


def check(
    local: Credentials,
    remote: str = "them",
    *,
    nominate: bool = False,
    password: str | None = None,
    controlled: bool = False,
) -> bytes:
    """Build a check as a full agent sends it."""
    message = stun.Message(stun.Method.BINDING, stun.Class.REQUEST)
    message.attributes["USERNAME"] = f"{local.ufrag}:{remote}"
    message.attributes["PRIORITY"] = 1
    message.attributes["ICE-CONTROLLED" if controlled else "ICE-CONTROLLING"] = 7
    if nominate:
        message.attributes["USE-CANDIDATE"] = None
    message.add_message_integrity((password or local.password).encode())
    return bytes(message)


def agent() -> tuple[IceAgent, Credentials]:
    ice = IceAgent()
    return ice, ice.add("s", "them", NOW)


def test_sample_request_of_the_rfc_passes_integrity() -> None:
    ice = IceAgent()
    ice.add("s", "h6vY", NOW, Credentials("evtj", "VOkJxbRl1RmTxUk/WvJxBt"))
    result = ice.receive(SAMPLE_REQUEST, HERE, NOW)
    assert result.session == "s"
    assert ice.counters.checks == 1
    assert result.reply is not None
    answer = stun.parse_message(result.reply)  # it says it is controlled, as we are: role conflict
    assert answer.error_code == 487
    assert answer.check_message_integrity(b"VOkJxbRl1RmTxUk/WvJxBt")
    assert not result.bind


def test_every_flipped_bit_of_the_sample_is_refused() -> None:
    ice = IceAgent()
    ice.add("s", "h6vY", NOW, Credentials("evtj", "VOkJxbRl1RmTxUk/WvJxBt"))
    for position in range(len(SAMPLE_REQUEST)):
        for bit in (1, 128):
            data = bytearray(SAMPLE_REQUEST)
            data[position] ^= bit
            result = ice.receive(bytes(data), HERE, NOW + position * 2 * SECOND_NS)
            assert result.reply is None, position
    assert ice.counters.checks == 0


@pytest.mark.parametrize("tail", [b"", b"\0", b"\0\0\0\0", b"\xff" * 8])
def test_truncated_or_extended_at_every_length(tail: bytes) -> None:
    ice, local = agent()
    whole = check(local)
    for length in range(len(whole) + (1 if tail else 0)):
        result = ice.receive(whole[:length] + tail, HERE, NOW + length * 2 * SECOND_NS)
        assert result.reply is None, length
    assert ice.counters.checks == 0
    assert ice.place("s") is None


def test_attribute_running_over_the_end_is_malformed() -> None:
    _, local = agent()
    data = bytearray(check(local))
    data[22:24] = (4000).to_bytes(2, "big")
    with pytest.raises(StunError):
        read(bytes(data))


def test_answer_carries_address_integrity_and_fingerprint() -> None:
    ice, local = agent()
    for address in (HERE, ("2001:db8::7", 5000)):
        result = ice.receive(check(local), address, NOW)
        assert result.reply is not None
        answer = stun.parse_message(result.reply)
        assert answer.message_class == stun.Class.RESPONSE
        assert answer.attributes["XOR-MAPPED-ADDRESS"] == address
        assert answer.check_message_integrity(local.password.encode())
        assert "FINGERPRINT" in answer.attributes


def test_nothing_is_bound_before_integrity() -> None:
    ice, local = agent()
    for data in (
        check(local, password="wrong"),
        check(local, remote="other"),
        check(Credentials("unknown", local.password)),
    ):
        result = ice.receive(data, HERE, NOW)
        assert (result.reply, result.bind) == (None, False)
    assert ice.place("s") is None
    assert (ice.counters.bad_integrity, ice.counters.unknown_user) == (2, 1)


def test_first_valid_path_serves_and_nomination_moves() -> None:
    ice, local = agent()
    assert ice.receive(check(local), HERE, NOW).bind
    assert not ice.receive(check(local), HERE, NOW).bind
    assert not ice.receive(check(local), ELSEWHERE, NOW).bind
    assert ice.place("s") == (HERE, 0)
    assert ice.receive(check(local, nominate=True), ELSEWHERE, NOW).bind
    assert ice.place("s") == (ELSEWHERE, 0)


def test_rebinding_behind_a_nat_moves_only_a_silent_session() -> None:
    ice, local = agent()
    ice.receive(check(local, nominate=True), HERE, NOW)
    assert not ice.receive(check(local), ELSEWHERE, NOW + SECOND_NS).bind
    assert ice.receive(check(local), ELSEWHERE, NOW + REBIND_NS + 1).bind


def test_states_follow_checks_and_media() -> None:
    ice, local = agent()
    ice.receive(check(local, nominate=True), HERE, NOW)
    assert ice.state("s") is IceState.CONNECTED

    def heard_ns(session: str) -> int:
        return NOW + 5 * SECOND_NS

    assert ice.handle_timer(NOW + DISCONNECTED_NS + SECOND_NS, heard_ns) == []
    later = NOW + 5 * SECOND_NS + DISCONNECTED_NS + 1
    assert ice.handle_timer(later, heard_ns) == [("s", IceState.DISCONNECTED)]
    assert ice.handle_timer(later, heard_ns) == []
    assert ice.handle_timer(later, lambda session: later) == [("s", IceState.CONNECTED)]
    assert ice.handle_timer(later, heard_ns) == [("s", IceState.DISCONNECTED)]
    ice.receive(check(local), HERE, later)
    assert ice.handle_timer(later) == [("s", IceState.CONNECTED)]
    assert ice.handle_timer(later + 31 * SECOND_NS) == [("s", IceState.EXPIRED)]


def test_media_does_not_renew_consent() -> None:
    ice, local = agent()
    ice.receive(check(local), HERE, NOW)
    assert ice.handle_timer(NOW + 29 * SECOND_NS, lambda session: NOW + 29 * SECOND_NS) == []
    assert ice.handle_timer(NOW + 31 * SECOND_NS, lambda session: NOW + 31 * SECOND_NS) == [
        ("s", IceState.EXPIRED)
    ]


def test_who_is_heard_survives_lost_checks_but_not_the_rfcs_limit() -> None:
    """With 5 % loss a client that checks every 5 s loses two checks in a row each quarter of an hour."""
    ice = IceAgent(consent_ns=15 * SECOND_NS)
    local = ice.add("s", "theirs", NOW)
    ice.receive(check(local, "theirs"), HERE, NOW)
    for seconds in (16, 29):
        at = NOW + seconds * SECOND_NS
        assert ice.handle_timer(at, lambda session, at=at: at - SECOND_NS) == []  # type: ignore[misc]
    silent = NOW + 2 * SECOND_NS
    assert ice.handle_timer(NOW + 18 * SECOND_NS, lambda session: silent) == [("s", IceState.EXPIRED)]


def test_session_without_a_check_expires() -> None:
    ice, _ = agent()
    assert ice.handle_timer(NOW + CONNECT_NS) == []
    assert ice.handle_timer(NOW + CONNECT_NS + 1) == [("s", IceState.EXPIRED)]


def test_restart_keeps_the_old_name_until_the_new_one_is_used() -> None:
    ice, old = agent()
    ice.receive(check(old, nominate=True), HERE, NOW)
    new = ice.restart("s", "fresh", NOW)
    assert new.ufrag != old.ufrag
    assert ice.receive(check(old), HERE, NOW).reply is not None
    assert ice.receive(check(new, "fresh", nominate=True), ELSEWHERE, NOW).bind
    assert ice.receive(check(old), HERE, NOW).reply is None


def test_a_restart_whose_answer_was_lost_leaves_the_old_name_in_use() -> None:
    ice, old = agent()
    ice.receive(check(old, nominate=True), HERE, NOW)
    lost = ice.restart("s", "lost", NOW)
    new = ice.restart("s", "fresh", NOW)
    assert ice.receive(check(old), HERE, NOW).reply is not None
    assert ice.receive(check(lost, "lost"), HERE, NOW).reply is None, "nobody can have its name"
    assert ice.receive(check(new, "fresh", nominate=True), ELSEWHERE, NOW).bind
    assert ice.receive(check(old), HERE, NOW).reply is None


def test_the_first_check_after_a_restart_moves_without_nomination() -> None:
    ice, old = agent()
    ice.receive(check(old, nominate=True), HERE, NOW)
    new = ice.restart("s", "fresh", NOW)
    assert ice.receive(check(new, "fresh"), ELSEWHERE, NOW).bind
    assert not ice.receive(check(new, "fresh"), HERE, NOW).bind, "only the first"
    assert ice.place("s") == (ELSEWHERE, 0)


def test_media_moves_a_session_but_is_no_consent() -> None:
    ice, local = agent()
    assert not ice.follow("s", ELSEWHERE, 0, NOW), "never checked"
    ice.receive(check(local, nominate=True), HERE, NOW)
    victim = ice.add("victim", "them", NOW)
    ice.receive(check(victim), ("192.0.2.2", 4000), NOW)
    assert not ice.follow("s", ("192.0.2.2", 4000), 0, NOW + SECOND_NS), "somebody is there"
    assert ice.follow("s", ELSEWHERE, 0, NOW + 29 * SECOND_NS)
    assert ice.place("s") == (ELSEWHERE, 0)
    assert not ice.follow("nobody", HERE, 0, NOW)
    expired = ice.handle_timer(NOW + 31 * SECOND_NS, lambda session: NOW + 31 * SECOND_NS)
    assert ("s", IceState.EXPIRED) in expired


def test_flood_is_limited_but_bound_addresses_are_heard() -> None:
    ice, local = agent()
    ice.receive(check(local), HERE, NOW)
    rubbish = check(Credentials("nobody", "x" * 24))
    for port in range(FAILURES_PER_SOURCE + 50):
        ice.receive(rubbish, ("192.0.2.1", 10_000 + port), NOW + 1)
    assert ice.counters.limited == 50
    assert ice.receive(check(local), HERE, NOW + 1).reply is not None
    # Who names a session is counted by itself, so that nobody behind the same NAT shuts it out.
    assert ice.receive(check(local), ELSEWHERE, NOW + 1).reply is not None
    false = check(Credentials(local.ufrag, "x" * 24))
    for port in range(FAILURES_PER_SOURCE + 50):
        ice.receive(false, ("192.0.2.1", 20_000 + port), NOW + 2)
    assert ice.counters.limited == 100
    assert ice.receive(check(local), HERE, NOW + 2).reply is not None
    assert ice.receive(check(local), ("192.0.2.1", 30_000), NOW + 2).reply is None
    assert ice.receive(check(local), ("192.0.2.1", 30_000), NOW + 2 * SECOND_NS).reply is not None


def test_an_address_in_use_is_not_taken_over() -> None:
    """A second session checks from a forged source address, that of the first one."""
    ice, victim = agent()
    attacker = ice.add("attacker", "them", NOW)
    assert ice.receive(check(victim, nominate=True), HERE, NOW).bind
    assert not ice.receive(check(attacker, nominate=True), HERE, NOW + DISCONNECTED_NS).bind
    assert ice.place("s") == (HERE, 0)
    assert ice.place("attacker") is None
    # A silent session's address may be somebody else's by now: a NAT gives it to the next.
    later = NOW + DISCONNECTED_NS + 1
    assert ice.receive(check(attacker, nominate=True), HERE, later).bind
    assert ice.place("attacker") == (HERE, 0)
    assert ice.place("s") is None
    assert ice.receive(check(victim), ELSEWHERE, later).bind


def test_a_session_that_sprays_has_one_address() -> None:
    ice, local = agent()
    for port in range(1000):
        assert ice.receive(check(local, nominate=True), ("192.0.2.9", 10_000 + port), NOW).bind
    assert ice.place("s") == (("192.0.2.9", 10_999), 0)
    other = ice.add("other", "them", NOW)
    for port in range(999):
        assert ice.receive(check(other, nominate=True), ("192.0.2.9", 10_000 + port), NOW).bind, (
            "it was given back"
        )


def test_removed_session_is_unknown() -> None:
    ice, local = agent()
    ice.remove("s")
    assert ice.receive(check(local), HERE, NOW).reply is None
    assert ice.state("s") is IceState.EXPIRED


def test_responses_and_indications_are_ignored() -> None:
    ice, local = agent()
    for kind in (stun.Class.RESPONSE, stun.Class.ERROR, stun.Class.INDICATION):
        message = stun.Message(stun.Method.BINDING, kind)
        message.attributes["USERNAME"] = f"{local.ufrag}:them"
        message.add_message_integrity(local.password.encode())
        assert ice.receive(bytes(message), HERE, NOW).reply is None
    assert ice.counters.ignored == 3


def test_what_follows_the_integrity_is_not_believed() -> None:
    ice, local = agent()
    ice.receive(check(local, nominate=True), HERE, NOW)
    message = stun.parse_message(check(local))
    integrity = message.attributes.pop("MESSAGE-INTEGRITY")
    message.attributes.pop("FINGERPRINT")
    message.attributes.update({"MESSAGE-INTEGRITY": integrity, "USE-CANDIDATE": None})
    message.add_fingerprint()
    result = ice.receive(bytes(message), ELSEWHERE, NOW)
    assert result.session == "s"
    assert not result.bind
    assert ice.place("s") == (HERE, 0)
