// What this browser measures of its call: told to the server (docs/signal.md, `quality`) and shown on the tiles.

const EVERY_MS = 5000;
const FAIR = { loss: 0.03, frozen: 0.02, rttMs: 300 };
const POOR = { loss: 0.1, frozen: 0.1, rttMs: 800 };

const rises = (now, before, name) => Math.max(0, (now[name] ?? 0) - (before?.[name] ?? 0));

/** Measures all connections every few seconds. Event "change" when a line has become better or worse. */
export class Quality extends EventTarget {
  #links;
  #trackOf;
  #tell;
  #before = new Map();
  #grades = new Map();
  #timer;

  /** links() gives every Link, trackOf(pc, mid) whose track comes by a mid; tell(report) sends one. */
  constructor(links, trackOf, tell) {
    super();
    this.#links = links;
    this.#trackOf = trackOf;
    this.#tell = tell;
    this.#timer = setInterval(() => this.#measure(), EVERY_MS);
  }

  close() {
    clearInterval(this.#timer);
  }

  /** good, fair or poor: what comes from a participant; of null, what we send. */
  of(identity) {
    return this.#grades.get(identity) ?? "good";
  }

  async #measure() {
    const seen = new Map();
    const streams = [];
    const worst = new Map();
    let rttMs = null;
    for (const link of this.#links()) {
      const { pc } = link;
      if (!pc || link.state !== "connected") continue;
      const stats = await pc.getStats();
      for (const report of stats.values()) {
        if (report.type === "candidate-pair" && report.nominated && report.currentRoundTripTime !== undefined)
          rttMs = Math.max(rttMs ?? 0, report.currentRoundTripTime * 1000);
        if (report.type !== "inbound-rtp" && report.type !== "outbound-rtp") continue;
        const far = stats.get(report.remoteId);
        // A layer or connection made anew counts from nothing under a name of its own.
        const key = `${report.ssrc}/${report.id}`;
        const last = this.#before.get(key);
        seen.set(key, { ...report, farLost: far?.packetsLost });
        if (!last) continue;
        const owner = report.type === "inbound-rtp" ? this.#trackOf(pc, report.mid) : null;
        const stream = report.type === "inbound-rtp" ? received(report, last, owner) : sent(report, last, far);
        if (!stream.packets && !stream.lost) continue;
        streams.push(stream);
        const bad = Math.max(grade(stream), worst.get(owner?.identity ?? null) ?? 0);
        worst.set(owner?.identity ?? null, bad);
      }
    }
    this.#before = seen;
    if (!streams.length) return;
    if (rttMs > FAIR.rttMs) worst.set(null, Math.max(rttMs > POOR.rttMs ? 2 : 1, worst.get(null) ?? 0));
    this.#grades = new Map([...worst].map(([identity, bad]) => [identity, ["good", "fair", "poor"][bad]]));
    this.dispatchEvent(new Event("change"));
    this.#tell({ ...(rttMs === null ? {} : { rtt_ms: rttMs }), streams: streams.slice(0, 64) });
  }
}

function received(report, last, owner) {
  return {
    ...common("in", report, last, rises(report, last, "bytesReceived"), rises(report, last, "framesDecoded")),
    ...(owner ? { track: owner.track } : {}),
    packets: rises(report, last, "packetsReceived"),
    lost: rises(report, last, "packetsLost"),
    jitter_ms: Math.max(0, report.jitter ?? 0) * 1000,
    freeze_ms: rises(report, last, "totalFreezesDuration") * 1000,
  };
}

function sent(report, last, far) {
  return {
    ...common("out", report, last, rises(report, last, "bytesSent"), rises(report, last, "framesEncoded")),
    packets: rises(report, last, "packetsSent"),
    lost: Math.max(0, (far?.packetsLost ?? 0) - (last.farLost ?? 0)),
    jitter_ms: Math.max(0, far?.jitter ?? 0) * 1000,
  };
}

function common(direction, report, last, bytes, frames) {
  const seconds = (report.timestamp - last.timestamp) / 1000;
  const size = report.frameWidth ? { width: report.frameWidth, height: report.frameHeight } : {};
  const rates = seconds > 0 ? { kbps: (bytes * 8) / 1000 / seconds, fps: Math.min(1000, frames / seconds) } : {};
  return { direction, kind: report.kind, ...rates, ...size };
}

function grade({ packets, lost, freeze_ms: frozenMs = 0 }) {
  const loss = lost / (packets + lost);
  const frozen = frozenMs / EVERY_MS;
  if (loss > POOR.loss || frozen > POOR.frozen) return 2;
  return loss > FAIR.loss || frozen > FAIR.frozen ? 1 : 0;
}
