// How long received pictures and sound wait before they are shown: longer while packets are missing, so that what is
// resent comes in time. By itself a browser waits for the usual jitter only, and freezes at what takes a round trip
// more. The wait grows at once and falls slowly, and on a good line there is none.

const EVERY_MS = 1000;
const MOST_MS = 1000; // later than that the server asks nobody again for a viewer's sake
const STEP_MS = 150;
const ROUNDS = 3; // a resent packet is asked for after one, comes after one more, and may be lost once
const ASKED = 1.3; // requests for packets within some seconds: two are no chance
const CALM_S = 15;
const FALL = 0.93; // each second of calm after that
const CONCEALED = 0.02; // of the sound

/** How long to wait after one more second in which so much was asked for again, with or without a disturbance. */
export function patience({ ms = 0, asked = 0, calmS = 0 }, { nacks, disturbed, rttMs }) {
  const recent = asked * 0.8 + nacks;
  const missing = recent > ASKED;
  if (!missing && !disturbed) {
    const less = calmS >= CALM_S ? ms * FALL : ms;
    return { ms: less < STEP_MS / 2 ? 0 : less, asked: recent, calmS: calmS + 1 };
  }
  const enough = missing ? ROUNDS * rttMs + STEP_MS : 0;
  return { ms: Math.min(MOST_MS, Math.max(ms + (disturbed ? STEP_MS : 0), enough)), asked: recent, calmS: 0 };
}

/** Lets the receivers of a connection wait as their packets need, until it is closed. */
export function bePatient(pc) {
  const known = new Map();
  const timer = setInterval(async () => {
    if (pc.connectionState === "closed") return clearInterval(timer);
    const reports = [...(await pc.getStats()).values()];
    const pair = reports.find(({ type, nominated }) => type === "candidate-pair" && nominated);
    for (const { mid, receiver } of pc.getTransceivers()) {
      const now = reports.find((report) => report.type === "inbound-rtp" && report.mid === mid);
      if (!now) continue;
      const { before, wait } = known.get(now.id) ?? { before: now, wait: {} };
      const rises = (name) => Math.max(0, (now[name] ?? 0) - (before[name] ?? 0));
      const concealed = rises("concealedSamples") - rises("silentConcealedSamples");
      const next = patience(wait, {
        nacks: rises("nackCount"),
        disturbed: rises("freezeCount") > 0 || concealed > CONCEALED * rises("totalSamplesReceived"),
        rttMs: 1000 * (pair?.currentRoundTripTime ?? 0),
      });
      known.set(now.id, { before: now, wait: next });
      if (next.ms !== (wait.ms ?? 0)) receiver.jitterBufferTarget = next.ms || null;
    }
  }, EVERY_MS);
}
