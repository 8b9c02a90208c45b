// How long received pictures and sound wait before they are shown: longer while packets are missing, so that what is
// resent comes in time. By itself a browser waits for the usual jitter only, and freezes at what takes a round trip
// more. The wait is short on a good line; at first, when nothing is known of the line, it bears one late packet.
// It is sought quickly, since the freezes of a bad line are those before it, and falls slowly.

const EVERY_MS = 200;
const MOST_MS = 1000; // later than that the server asks nobody again for a viewer's sake
const START_MS = 120;
const STEP_MS = 150;
const ROUNDS = 3; // a resent packet is asked for after one, comes after one more, and may be lost once
const ASKED = 1.3; // requests for packets within some seconds: two are no chance
const CALM_S = 15;
const FALL = 0.93; // each second of calm after that
const CONCEALED = 0.02; // of a second's sound
// A picture that has to wait much longer than the one before it is a freeze itself (libwebrtc's VCMTiming takes a new
// wait at once): half speed is none. Sound is stretched by the browser.
const RISE_MS = 50;
const RISE_EVERY_MS = 100;

/** How long to wait after so many more seconds in which so much was asked for again, with or without a disturbance. */
export function patience({ ms = START_MS, asked = 0, calmS = 0 }, { nacks, disturbed, rttMs, seconds }) {
  const recent = asked * 0.8 ** seconds + nacks;
  const missing = recent > ASKED;
  if (!missing && !disturbed) {
    const less = calmS >= CALM_S ? ms * FALL ** seconds : ms;
    return { ms: less < STEP_MS / 2 ? 0 : less, asked: recent, calmS: calmS + seconds };
  }
  const enough = missing ? ROUNDS * rttMs + STEP_MS : 0;
  return { ms: Math.min(MOST_MS, Math.max(ms + (disturbed ? STEP_MS : 0), enough)), asked: recent, calmS: 0 };
}

/** Lets the receivers of a connection wait as their packets need, until it is closed. */
export function bePatient(pc) {
  const known = new Map();
  let lookedMs = performance.now();
  const timer = setInterval(() => {
    if (pc.connectionState === "closed") return clearInterval(timer);
    for (const { receiver } of pc.getTransceivers()) {
      const one = known.get(receiver) ?? { wait: { ms: START_MS }, given: START_MS - RISE_MS };
      known.set(receiver, one);
      const next = receiver.track.kind === "audio" ? one.wait.ms : Math.min(one.wait.ms, one.given + RISE_MS);
      if (next !== one.given) receiver.jitterBufferTarget = next || null;
      one.given = next;
    }
    if (performance.now() - lookedMs < EVERY_MS - RISE_EVERY_MS / 2) return;
    const seconds = (performance.now() - lookedMs) / 1000;
    lookedMs += 1000 * seconds;
    pc.getStats().then((reports) => look(pc, known, [...reports.values()], seconds));
  }, RISE_EVERY_MS);
}

function look(pc, known, reports, seconds) {
  const pair = reports.find(({ type, nominated }) => type === "candidate-pair" && nominated);
  for (const { mid, receiver } of pc.getTransceivers()) {
    const now = reports.find((report) => report.type === "inbound-rtp" && report.mid === mid);
    const one = known.get(receiver);
    if (!now || !one) continue;
    const { before = now, second = now } = one;
    const rises = (name, since) => Math.max(0, (now[name] ?? 0) - (since[name] ?? 0));
    const over = now.timestamp - second.timestamp >= 1000;
    const concealed = rises("concealedSamples", second) - rises("silentConcealedSamples", second);
    one.wait = patience(one.wait, {
      seconds,
      nacks: rises("nackCount", before),
      disturbed: over && (rises("freezeCount", second) > 0 || concealed > CONCEALED * rises("totalSamplesReceived", second)),
      rttMs: 1000 * (pair?.currentRoundTripTime ?? 0),
    });
    Object.assign(one, { before: now, second: over ? now : second });
  }
}
