"""The media worker process: ``python -m mediaserver.media.worker``, its settings on one line of standard
input.

It listens for control on a Unix socket and outlives it: calls and recordings go on while control is dead.
SIGTERM
(or ``quit``) closes recordings cleanly and says goodbye to every client; a second one ends at once. Left
alone for a minute without control, sessions and recordings it exits.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections.abc import Callable

import structlog
import uvloop

from mediaserver import log
from mediaserver.forwarder import open_forwarder
from mediaserver.ipc import IpcServer
from mediaserver.media import tcp
from mediaserver.media.answer import Candidate
from mediaserver.media.ice import SECOND_NS
from mediaserver.media.service import Service
from mediaserver.media.tcp import TcpDoor
from mediaserver.memory import keep_tidy, settle_memory
from mediaserver.settings import WorkerConfig
from recorder.clock import SystemClock
from recorder.journal import GroupCommit, JournalTrouble
from recorder.keys import open_provider

ORPHAN_NS = 60 * SECOND_NS
CLOSE_S = 10.0

_log = structlog.get_logger(__name__)


def bind_sockets(config: WorkerConfig) -> list[socket.socket]:
    """Bind one UDP socket per address, all on the same port; OSError if the port is taken."""
    sockets: list[socket.socket] = []
    port = config.port
    for address in config.bind:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sockets.append(sock)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, config.media.receive_buffer_bytes)
        sock.bind((address, port))
        port = sock.getsockname()[1]
    return sockets


def candidates(config: WorkerConfig, port: int, tcp_port: int | None = None) -> list[Candidate]:
    """Return what clients are told to try: the advertised addresses some socket can answer from, by UDP,
    then by TCP.
    """
    families = {":" in address for address in config.bind}
    told = [address for address in config.advertised if (":" in address) in families]
    by_tcp = [Candidate(address, tcp_port, tcp=True) for address in told if tcp_port is not None]
    return [Candidate(address, port) for address in told] + by_tcp


def open_door(config: WorkerConfig, sockets: list[socket.socket]) -> TcpDoor | None:
    """Listen for clients that come by TCP, if they may; adds their loopback socket to the forwarder's.

    A port that cannot be had costs those clients, not the others: it is logged and the worker serves.
    """
    if config.tcp_port is None:
        return None
    try:
        listeners = tcp.listen(list(config.bind), config.tcp_port)
    except OSError as error:
        _log.error("tcp_port_unavailable", port=config.tcp_port, error=str(error))
        return None
    inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    inner.bind(("127.0.0.1", 0))
    sockets.append(inner)
    return TcpDoor(
        listeners,
        index=config.index,
        directory=config.socket.parent,
        forwarder_address=inner.getsockname(),
        forwarder_socket=len(sockets) - 1,
    )


def commit_maker(
    config: WorkerConfig, clock: SystemClock
) -> Callable[[Callable[[JournalTrouble], None]], GroupCommit]:
    """Return what starts the group commit; the signing key is read, or the KMS asked, when the first
    recording starts. It may block for as long as the KMS is given.
    """

    def make(on_trouble: Callable[[JournalTrouble], None]) -> GroupCommit:
        return GroupCommit(
            open_provider(config.keys).signer(),
            clock,
            queue_bytes=config.recording.queue_bytes,
            segment_ns=int(config.recording.segment_s * SECOND_NS),
            chunk_bytes=config.recording.chunk_bytes,
            chunk_ns=config.recording.chunk_ms * 1_000_000,
            fsync=config.recording.fsync,
            on_trouble=on_trouble,
        )

    return make


async def run(config: WorkerConfig) -> None:
    """Run a worker until it is told to end."""
    sockets = bind_sockets(config)
    port = sockets[0].getsockname()[1]
    door = open_door(config, sockets)
    clock = SystemClock()
    service = Service(
        index=config.index,
        forwarder=open_forwarder(sockets, kind=config.media.forwarder),
        candidates=candidates(config, port, door.port if door is not None else None),
        udp=[f"[{a}]:{port}" if ":" in a else f"{a}:{port}" for a in config.advertised],
        consent_ns=int(config.media.consent_s * SECOND_NS),
        codecs=config.media.codecs,
        red=config.media.red,
        commit=commit_maker(config, clock),
        clock=clock,
        publish_event=lambda event: server.publish(event),
        heads_ns=int(config.heads_s * SECOND_NS),
        door=door,
    )
    server = IpcServer(config.socket, service.handlers())
    service.start()
    await server.start()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, _end, service)
    loop.add_signal_handler(
        signal.SIGINT, lambda: None
    )  # the terminal's Ctrl-C is for control, which then tells us
    settle_memory()
    _log.info("worker_started", port=port, pid=os.getpid(), forwarder=service.transport.forwarder.kind)
    watching = [asyncio.create_task(_watch_orphan(service)), asyncio.create_task(keep_tidy())]
    await service.quit.wait()
    for task in watching:
        task.cancel()
    _log.info("worker_ending", recordings=len(service.recordings), sessions=len(service.sessions))
    try:
        async with asyncio.timeout(CLOSE_S):
            await service.close("worker_ended")
    except TimeoutError:
        _log.error("worker_close_timeout", seconds=CLOSE_S)
    await server.close()
    for sock in sockets:
        sock.close()


def _end(service: Service) -> None:
    if service.quit.is_set():
        os._exit(1)
    service.draining = True
    service.quit.set()


async def _watch_orphan(service: Service) -> None:
    while True:
        await asyncio.sleep(5)
        if service.is_orphan(time.monotonic_ns(), ORPHAN_NS):
            _log.warning("worker_orphaned")
            service.quit.set()


def main() -> int:
    """Read the settings and run."""
    line = sys.stdin.readline()
    if not line:
        return 0  # a spare whose control process has ended
    config = WorkerConfig.model_validate_json(line)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)  # closed, its number would go to the next socket
    os.close(nothing)
    log.configure(config.log, worker=config.index)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    try:
        uvloop.run(run(config))
    except OSError as error:
        _log.error("worker_failed", error=str(error))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
