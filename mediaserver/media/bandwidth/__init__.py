"""How much a subscriber's line carries: estimated from what its feedback says, no I/O, time given.

The shape is Google Congestion Control's (draft-ietf-rmcat-gcc-02; Carlucci, De Cicco, Holmer, Mascolo:
Analysis and Design of the Google Congestion Control for WebRTC, ACM MMSys 2016): ``trend`` tells from
arrival times whether a queue grows, ``aimd`` makes a rate of that, ``loss`` one of the loss, ``probe`` finds
out by padding whether more fits than is being sent, ``estimator`` puts them together. ``sending`` is the
shell: one subscriber session's estimator, its timer and its padding. Figures and the seam for layer choice:
docs/bandwidth.md.
"""

from mediaserver.media.bandwidth.estimator import Estimator
from mediaserver.media.bandwidth.sending import Sending

__all__ = ["Estimator", "Sending"]
