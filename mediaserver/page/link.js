// One WebRTC connection to the server (WHIP or WHEP) that comes back by itself.
//
// States: connecting → connected ⇄ reconnecting → failed | closed. A connection counts as broken when the network
// changed, when ICE fails or stays disconnected, when nothing at all has arrived for a while (a dead server process sends
// no goodbye), or when the event stream says so. Then ICE is restarted, which keeps the session over a change of network;
// if that does not help, or the session is gone, the connection is made anew: a new offer, with growing pauses.

import { roamingConnection } from "./roaming.js";

const CONNECT_TIMEOUT_MS = 8000;
const ROAMING_TIMEOUT_MS = 3000; // where such a connection does not get through an ordinary one is next
const DISCONNECTED_MS = 1500;
const SILENCE_MS = 3200; // ICE checks of a quiet connection are answered every 2.5 s
const LOOK_MS = 200;
const LIVELY_LOOKS = 8; // so often in a row something had arrived …
const LIVELY_SILENCE_MS = 700; // … then so much silence is no pause: feedback alone comes every 100 ms
const SHOWN_MS = 500; // what is mended sooner need not be told
const FRESH_MS = 1500;
const MEND_MS = 5000; // for an ICE restart that the server has answered, or a server that answers but cannot
// For one answer: on a dead network it never comes. The first are short, because a browser may ask over connections that
// died with the old address (Firefox keeps them for 5 s); a try that is given up takes one of them with it.
const ASKS_MS = [400, 400, 800, 1500];
const NETWORK = "the network changed";
const SETTINGS = { bundlePolicy: "max-bundle" };
const PAUSES_MS = [0, 250, 250, 500, 500, 500, 1000, 1000, 2000];

let roams = true; // until such a connection fails, and again once an ordinary one has

export class Link extends EventTarget {
  #api;
  #path;
  #setUp;
  #state = "connecting";
  #closed = false;
  #broken = null;
  #location = null;
  #connectedAt = null;
  #mending = false;
  #moved = () => this.pc && this.#state === "connected" && this.#mend(this.pc, NETWORK);
  #wake = () => {};
  pc = null;

  /** setUp(pc) adds the transceivers before every offer. */
  constructor(api, path, setUp) {
    super();
    this.#api = api;
    this.#path = path;
    this.#setUp = setUp;
    window.addEventListener("online", this.#moved);
    this.#run();
  }

  get state() {
    return this.#state;
  }

  /** Id of the server's session, to find oneself in events. */
  get session() {
    return this.#location?.split("/").pop() ?? null;
  }

  /** Whether it was made just now, so that older news of its end does not concern it. */
  get isFresh() {
    return this.#state === "connected" && performance.now() - this.#connectedAt < FRESH_MS;
  }

  /** Make the connection anew; a pause between tries ends at once. */
  restart(reason) {
    this.#broken?.(reason);
    this.#wake();
  }

  close() {
    if (this.#closed) return;
    this.#closed = true;
    window.removeEventListener("online", this.#moved);
    this.#broken?.("closed");
    this.#hangUp();
    this.#become("closed");
  }

  #become(state, detail = null) {
    if (this.#state === "closed" || (this.#state === state && !detail)) return;
    this.#state = state;
    this.dispatchEvent(new CustomEvent("state", { detail: { state, problem: detail } }));
  }

  #hangUp() {
    this.pc?.close();
    this.pc = null;
    if (this.#location) this.#api.hangUp(this.#location);
    this.#location = null;
  }

  async #run() {
    let failures = 0;
    while (!this.#closed) {
      try {
        const broken = new Promise((done) => (this.#broken = done));
        await Promise.race([this.#connect(), broken.then((reason) => Promise.reject(new Error(reason)))]);
        failures = 0;
        this.#connectedAt = performance.now();
        this.#become("connected");
        const watch = this.#watch();
        const reason = await broken;
        clearInterval(watch);
        console.info("link broke", this.#path, reason);
      } catch (problem) {
        if (this.#closed) break;
        console.info("link did not connect", this.#path, problem.message);
        if (problem.status && !problem.retryable) {
          this.#hangUp();
          this.#become("failed", problem);
          return;
        }
        failures += 1;
        if (problem.code) this.dispatchEvent(new CustomEvent("trouble", { detail: problem }));
      }
      if (this.#closed) break;
      this.#become("reconnecting");
      this.#hangUp();
      await new Promise((done) => {
        this.#wake = done;
        setTimeout(done, PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)]);
      });
    }
    this.#hangUp();
  }

  async #connect() {
    const roaming = roams ? roamingConnection(SETTINGS) : null;
    const pc = roaming ?? new RTCPeerConnection(SETTINGS);
    this.pc = pc;
    pc.ontrack = (event) => this.dispatchEvent(Object.assign(new Event("track"), { track: event }));
    let lost = 0;
    pc.onconnectionstatechange = () => {
      clearTimeout(lost);
      if (this.pc !== pc) return;
      if (pc.connectionState === "failed") this.#mend(pc, "ICE failed");
      if (pc.connectionState === "disconnected")
        lost = setTimeout(() => this.#mend(pc, "ICE stayed disconnected"), DISCONNECTED_MS);
    };
    this.#setUp(pc);
    // The answer names the TURN servers, so candidates are gathered after it; the server needs none of them.
    const offer = await offered(pc);
    const { sdp, location, iceServers } = await this.#api.offer(this.#path, offer.sdp);
    if (this.#closed || this.pc !== pc) {
      this.#api.hangUp(location);
      throw new Error("given up meanwhile");
    }
    this.#location = location;
    if (iceServers.length) pc.setConfiguration({ ...pc.getConfiguration(), iceServers });
    await described(pc, offer);
    await pc.setRemoteDescription({ type: "answer", sdp });
    try {
      await connected(pc, roaming ? ROAMING_TIMEOUT_MS : CONNECT_TIMEOUT_MS);
    } catch (problem) {
      roams = !roaming;
      throw problem;
    }
  }

  /**
   * Bring back what seems lost. While the server does not answer there is nothing better than this connection: its checks
   * go on, and media flows as soon as one gets through. Then ICE is restarted; the link breaks if that does not help.
   */
  async #mend(pc, reason) {
    if (this.pc !== pc || this.#mending) return;
    if (this.#state !== "connected") return this.restart(reason);
    this.#mending = true;
    const telling = setTimeout(() => this.pc === pc && this.#become("reconnecting"), SHOWN_MS);
    const heard = new AbortController();
    const listening = reason === NETWORK ? null : listen(pc, heard);
    try {
      const restarted = !(reason === NETWORK && (await flows(pc))) && (await this.#restartIce(pc, heard.signal));
      console.info(restarted ? "link mended" : "link recovered", this.#path, reason);
      if (this.pc === pc) this.#become("connected");
    } catch (problem) {
      console.info("link not mended", this.#path, problem.message);
      if (this.pc === pc) this.restart(reason);
    } finally {
      clearTimeout(telling);
      clearInterval(listening);
      this.#mending = false;
    }
  }

  /** Restart ICE; false if something was heard before the server answered. Throws when it does not help. */
  async #restartIce(pc, heard) {
    for (;;) {
      const before = pc.currentRemoteDescription;
      const offer = await offered(pc, { iceRestart: true });
      const fragment = (offer.sdp.match(/^a=ice-(ufrag|pwd):.*$/gm) ?? []).slice(0, 2).join("\r\n") + "\r\n";
      const answer = await this.#askRestart(pc, fragment, heard);
      if (answer === null) return false;
      if (pc.signalingState !== "stable" || pc.currentRemoteDescription.sdp !== before.sdp) continue; // offered meanwhile
      if (answer.iceServers.length) pc.setConfiguration({ ...pc.getConfiguration(), iceServers: answer.iceServers });
      await described(pc, offer);
      await pc.setRemoteDescription({ type: "answer", sdp: renewed(pc.currentRemoteDescription.sdp, answer.fragment) });
      const [, ufrag] = offer.sdp.match(/^a=ice-ufrag:(\S+)/m);
      const began = performance.now();
      while (!(await answers(pc, ufrag))) {
        const waitedMs = performance.now() - began;
        // A browser may stay with its old path for as long as that carries.
        if (waitedMs > SHOWN_MS && (await flows(pc))) return false;
        if (this.pc !== pc || waitedMs > MEND_MS) throw new Error("no connection in time");
        await new Promise((done) => setTimeout(done, 50));
      }
      return true;
    }
  }

  /** Ask until the server answers; null once something is heard. */
  async #askRestart(pc, fragment, heard) {
    let until = Infinity;
    for (let tries = 0, pauseMs = 50; ; tries += 1, pauseMs = Math.min(400, 2 * pauseMs)) {
      try {
        const limitMs = ASKS_MS[Math.min(tries, ASKS_MS.length - 1)];
        return await this.#api.restartIce(this.#location, fragment, AbortSignal.timeout(limitMs));
      } catch (problem) {
        if (heard.aborted) return null;
        if (problem.status) until = Math.min(until, performance.now() + MEND_MS);
        if (!problem.retryable || this.pc !== pc || performance.now() > until) throw problem;
        await new Promise((done) => setTimeout(done, pauseMs));
        if (heard.aborted) return null;
      }
    }
  }

  /** Mend the link when nothing arrives any more, neither media nor answers to ICE checks. */
  #watch() {
    const pc = this.pc;
    let last = new Map();
    let since = performance.now();
    let looked = since;
    let lively = 0;
    return setInterval(async () => {
      const seen = await arrivals(pc);
      const now = performance.now();
      const late = now - looked > 2 * LOOK_MS; // a busy or hidden page: looks say little of what came between
      looked = now;
      if (arrived(seen, last)) {
        last = seen;
        since = now;
        lively = late ? 0 : lively + 1;
      } else if (this.pc === pc && now - since > (lively >= LIVELY_LOOKS ? LIVELY_SILENCE_MS : SILENCE_MS)) {
        since = now;
        lively = 0;
        this.#mend(pc, "silence");
      } else if (late || lively < LIVELY_LOOKS) lively = 0;
    }, LOOK_MS);
  }
}

/** Whether something arrives now; what was under way before does not count. */
async function flows(pc) {
  const pause = (ms) => new Promise((done) => setTimeout(done, ms));
  await pause(150);
  const before = await arrivals(pc);
  for (let look = 0; look < 4; look += 1) {
    await pause(100);
    if (arrived(await arrivals(pc), before)) return pc.connectionState === "connected";
  }
  return false;
}

/** Abort once something new arrives; gives the timer. */
function listen(pc, heard) {
  const before = arrivals(pc);
  return setInterval(async () => {
    if (arrived(await arrivals(pc), await before)) heard.abort();
  }, LOOK_MS / 2);
}

/**
 * Put the new names of the server's fragment into its answer; its candidates stay what they were. What it said last may
 * have been an offer of its own, in which it leaves the DTLS role open: it stays the server.
 */
function renewed(sdp, fragment) {
  const said = (name) => fragment.match(new RegExp(`^a=${name}:.*$`, "m"))[0].trim();
  return sdp
    .replace(/^a=ice-ufrag:.*$/gm, said("ice-ufrag"))
    .replace(/^a=ice-pwd:.*$/gm, said("ice-pwd"))
    .replace(/^a=setup:actpass/gm, "a=setup:passive");
}

/** Whether the server answers checks that were sent under a name of ours. */
async function answers(pc, ufrag) {
  const seen = await pc.getStats();
  for (const report of seen.values()) {
    if (report.type !== "candidate-pair" || !report.nominated || !report.responsesReceived) continue;
    if (seen.get(report.localCandidateId)?.usernameFragment === ufrag) return pc.connectionState === "connected";
  }
  return false;
}

/** Return how much has arrived by each way, by the id of its candidate pair: media in bytes, answers to checks. */
async function arrivals(pc) {
  const seen = new Map();
  if (!pc || pc.connectionState === "closed") return seen;
  for (const { type, id, bytesReceived, responsesReceived } of (await pc.getStats()).values())
    if (type === "candidate-pair") seen.set(id, bytesReceived + responsesReceived);
  return seen;
}

/** Whether anything has come between two looks; ways that were found or given up meanwhile are nothing. */
function arrived(now, before) {
  return [...now].some(([id, count]) => count > (before.get(id) ?? 0));
}

/**
 * Make an offer that asks for lost sound to be sent again: libwebrtc does that for whoever negotiates it, but does not
 * offer it by itself.
 */
async function offered(pc, options) {
  const { sdp: plain } = await pc.createOffer(options);
  return { sdp: plain.replace(/^(a=rtpmap:(\d+) opus\/.*\r\n)/gm, "$1a=rtcp-fb:$2 nack\r\n"), plain };
}

/** Set an offer; a browser that takes no changed one sets its own. */
async function described(pc, { sdp, plain }) {
  try {
    await pc.setLocalDescription({ type: "offer", sdp });
  } catch (problem) {
    console.info("sound is not asked for again:", problem.message);
    await pc.setLocalDescription({ type: "offer", sdp: plain });
  }
}

function connected(pc, limitMs) {
  return new Promise((done, fail) => {
    const timer = setTimeout(() => fail(new Error("no connection in time")), limitMs);
    const look = () => {
      if (pc.connectionState !== "connected") return;
      clearTimeout(timer);
      done();
    };
    pc.addEventListener("connectionstatechange", look);
    look();
  });
}
