"""Lay every picture and sound on the session's clock: pure, causal, the same live and afterwards.

Why this shape. A recording is evidence, so the time burnt into a picture must be the server's: a packet's
place is its arrival minus the delay it had beyond the fastest packets around it (``delay``). Sender reports
only relate a sender's pictures to his own sound (``reports``); whatever he claims moves them by at most half
a second. Everything about media time t is decided from records up to t + 2 s (``HORIZON_NS``), at moments
that follow from the records alone: however the journal is fed, the same frames come out.
"""

from compositor.timeline.model import HORIZON_NS, VERSION, Frame, Gap
from compositor.timeline.session import Timeline

__all__ = ["HORIZON_NS", "VERSION", "Frame", "Gap", "Timeline"]
