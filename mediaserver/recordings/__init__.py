"""Recordings from start to seal: lifecycle, going on after a death, composing, finishing.

``lifecycle`` starts, changes and stops recordings; ``continuity`` carries them over the death of a worker or
of this process; ``composing`` runs the compositor's processes; ``jobs`` makes the finishing durable (DBOS).
The bytes are written elsewhere: the journal by the media worker, composites by the compositor, manifest and
statements by ``recorder``.
"""
