"""A process that publishes two files over WHIP with GStreamer's webrtcbin.

It runs with Debian's own Python, whose ``gi`` knows GStreamer, and imports nothing of the project. Its
arguments are one line of JSON on standard input: ``url``, ``token``, ``camera`` (y4m), ``microphone`` (wav),
``video``, ``audio``. It prints ``connected`` and publishes until standard input closes.
"""

from __future__ import annotations

import json
import sys
import threading
import urllib.request
from typing import Any

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstWebRTC", "1.0")
gi.require_version("GstSdp", "1.0")
from gi.repository import GLib, Gst, GstSdp, GstWebRTC  # noqa: E402

VIDEO = {
    "VP8": "vp8enc deadline=1 target-bitrate=800000 keyframe-max-dist=30 ! rtpvp8pay pt=96",
    "H264": "x264enc tune=zerolatency speed-preset=ultrafast bitrate=800 key-int-max=30"
    " ! video/x-h264,profile=constrained-baseline ! rtph264pay config-interval=-1 pt=96",
}
AUDIO = {
    "OPUS": "opusenc inband-fec=true ! rtpopuspay pt=97",
    "PCMA": "alawenc ! rtppcmapay pt=8",
    "PCMU": "mulawenc ! rtppcmupay pt=0",
}
RATES = {"OPUS": 48000, "PCMA": 8000, "PCMU": 8000}


def pipeline(wanted: dict[str, str]) -> Any:
    """Build the pipeline that plays both files in real time into a webrtcbin."""
    return Gst.parse_launch(
        f"filesrc location={wanted['camera']} ! y4mdec ! videoconvert ! clocksync ! {VIDEO[wanted['video']]}"
        " ! queue ! out. "
        f"filesrc location={wanted['microphone']} ! wavparse ! audioconvert ! audioresample"
        f" ! audio/x-raw,rate={RATES[wanted['audio']]},channels=1 ! clocksync ! {AUDIO[wanted['audio']]}"
        " ! queue ! out. "
        "webrtcbin name=out bundle-policy=max-bundle"
    )


class Publisher:
    """One webrtcbin and its negotiation over WHIP, which runs in a thread of its own."""

    def __init__(self, wanted: dict[str, str]) -> None:
        self._wanted = wanted
        self._kept: list[Any] = []
        self._begun = False
        self._gathered = threading.Event()
        self.loop = GLib.MainLoop()
        self.pipeline = pipeline(wanted)
        self._out = self.pipeline.get_by_name("out")
        self._out.connect("notify::ice-gathering-state", self._gathering)
        self._out.connect("notify::connection-state", self._connecting)
        self._out.connect("on-negotiation-needed", self._needed)
        bus = self.pipeline.get_bus()
        bus.add_signal_watch()
        bus.connect("message::error", self._failed)

    def _gathering(self, *_: Any) -> None:
        state = self._out.get_property("ice-gathering-state")
        if state == GstWebRTC.WebRTCICEGatheringState.COMPLETE:
            self._gathered.set()

    def _connecting(self, *_: Any) -> None:
        if self._out.get_property("connection-state") == GstWebRTC.WebRTCPeerConnectionState.CONNECTED:
            print("connected", flush=True)

    def _needed(self, *_: Any) -> None:
        if not self._begun:
            self._begun = True
            threading.Thread(target=self._negotiate, daemon=True).start()

    def _failed(self, _: Any, message: Any) -> None:
        print(message.parse_error(), file=sys.stderr)
        self.loop.quit()

    def _ask(self, action: str, argument: Any) -> Any:
        promise = Gst.Promise.new()
        self._out.emit(action, argument, promise)
        promise.wait()
        reply = promise.get_reply()
        self._kept += [promise, reply]  # what they hold dies with them
        return reply

    def _negotiate(self) -> None:
        offer = self._ask("create-offer", Gst.Structure.new_empty("options")).get_value("offer")
        self._ask("set-local-description", offer)
        self._gathered.wait(10)
        request = urllib.request.Request(
            self._wanted["url"],
            self._out.get_property("local-description").sdp.as_text().encode(),
            {"Content-Type": "application/sdp", "Authorization": f"Bearer {self._wanted['token']}"},
        )
        with urllib.request.urlopen(request) as answer:
            _, sdp = GstSdp.SDPMessage.new_from_text(answer.read().decode())
        kind = GstWebRTC.WebRTCSDPType.ANSWER
        self._ask("set-remote-description", GstWebRTC.WebRTCSessionDescription.new(kind, sdp))


def main() -> None:
    """Publish until standard input closes."""
    Gst.init(None)
    publisher = Publisher(json.loads(sys.stdin.readline()))

    def until_closed() -> None:
        sys.stdin.read()
        publisher.loop.quit()

    threading.Thread(target=until_closed, daemon=True).start()
    publisher.pipeline.set_state(Gst.State.PLAYING)
    publisher.loop.run()
    publisher.pipeline.set_state(Gst.State.NULL)


if __name__ == "__main__":
    main()
