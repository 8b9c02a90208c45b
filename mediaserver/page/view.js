// Everybody's tracks on one connection. We offer once, one receiving line of each kind; then the server offers as tracks
// come and go (docs/signal.md).

import { Link } from "./link.js";
import { bePatient } from "./patience.js";

const SMALL = [240, 480]; // a picture narrower than these needs a layer less each

/** Events: "change" when tracks came or went, "problem" for a track that cannot be taken; link has the rest. */
export class View extends EventTarget {
  #signal;
  #waiting = null;
  #applying = false;
  #told = new Set();
  #tracks = [];
  #wished = new Map();

  constructor(signal) {
    super();
    this.#signal = signal;
    this.onOffer = ({ detail }) => {
      this.#waiting = detail;
      this.#apply();
    };
    this.onJoined = () => this.#takeUp();
    signal.addEventListener("offer", this.onOffer);
    signal.addEventListener("joined", this.onJoined);
    this.link = new Link(signal.exchange("subscribe"), "view", (pc) => {
      this.#waiting = null;
      for (const kind of ["audio", "video"]) pc.addTransceiver(kind, { direction: "recvonly" });
      pc.addEventListener("signalingstatechange", () => this.#apply());
      bePatient(pc);
    });
  }

  /** What a participant sends from a source, as tracks to play. */
  tracks(identity, ...sources) {
    return this.#tracks.filter((one) => one.identity === identity && sources.includes(one.source)).map(({ track }) => track);
  }

  /** Who sends what comes by a mid: {identity, track}, the latter an id; null for nobody. */
  sender(mid) {
    const one = this.#tracks.find((track) => track.mid === mid);
    return one ? { identity: one.identity, track: one.id } : null;
  }

  /** Ask for layers no larger than they are shown: widthOf(identity, source) in device pixels, 0 for not at all. */
  async fit(widthOf) {
    const { session, state } = this.link;
    if (state !== "connected") return;
    const wishes = [];
    for (const { id, identity, source, layers } of this.#tracks) {
      if (!layers) continue;
      const width = widthOf(identity, source);
      const preferred = Math.max(0, layers.length - 1 - SMALL.filter((limit) => width < limit).length);
      if (this.#wished.get(id) !== `${session}/${preferred}`) wishes.push({ track: id, preferred });
      this.#wished.set(id, `${session}/${preferred}`);
    }
    if (!wishes.length) return;
    try {
      await this.#signal.request("layers", { session, wishes });
    } catch (problem) {
      console.info("layers were not told", problem.message);
      this.#wished.clear();
    }
  }

  close() {
    this.#signal.removeEventListener("offer", this.onOffer);
    this.#signal.removeEventListener("joined", this.onJoined);
    this.link.close();
  }

  /** The server does not know us any more (it was restarted), but the media may flow on. */
  async #takeUp() {
    const session = this.link.session;
    if (!session || this.link.state !== "connected") return;
    try {
      await this.#signal.request("subscribe", { session });
    } catch (problem) {
      if (this.link.session === session) this.link.restart(problem.message);
    }
  }

  /** Apply the server's offer once the exchange before it is over. */
  async #apply() {
    const { pc, session } = this.link;
    const offer = this.#waiting;
    if (this.#applying || !offer || offer.session !== session || !pc.remoteDescription || pc.signalingState !== "stable") return;
    this.#waiting = null;
    this.#applying = true;
    try {
      if (offer.sdp) {
        await pc.setRemoteDescription({ type: "offer", sdp: offer.sdp });
        await pc.setLocalDescription();
      }
      const places = new Map(pc.getTransceivers().map((one) => [one.mid, one.receiver.track]));
      this.#tracks = offer.tracks.filter(({ mid }) => places.has(mid)).map((one) => ({ ...one, track: places.get(one.mid) }));
      this.dispatchEvent(new Event("change"));
      for (const one of offer.skipped) {
        if (!this.#told.has(one.track)) this.dispatchEvent(new CustomEvent("problem", { detail: one }));
        this.#told.add(one.track);
      }
      if (offer.sdp) {
        const { version } = offer;
        await this.#signal.request("answer", { session, version, sdp: pc.localDescription.sdp });
      }
    } catch (error) {
      if (this.link.pc === pc) this.link.restart(error.message);
    } finally {
      this.#applying = false;
      this.#apply();
    }
  }
}
