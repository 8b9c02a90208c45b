"""The media worker: one process, one UDP port, the rooms that live in it.

``python -m mediaserver.media.worker`` starts one. Cores without I/O (``ice``, ``dtls``, ``sdp``, ``answer``,
``feedback``) are driven by ``transport``, which alone touches sockets; ``service`` is what the control
process may ask for.
"""
