// How a publisher's rate comes back after its line was narrow. libwebrtc climbs by 8 % a second and measures what the
// line carries ("probes") when a call begins, hardly ever in its middle; but it does so once whenever the transport's
// highest rate is raised, which is the bandwidth (`b=`) of the answer it was given, and that is the page's to rewrite.

const EVERY_MS = 1000;
const FAR = 2; // times the estimate are measured …
const NEAR = 1.2; // … from a highest rate just above it; libwebrtc probes at twice what its encoders take, at most
const MOST = 5_000_000; // libwebrtc measures no more
const ROOM = 0.95; // of the highest rate: an estimate above this is about to be held back by it
const PASSED = 0.87; // of a probe came through: the line carries more yet; of one that fills it 0.95 x 0.9 at most count
const BUSY = 0.7; // of the estimate are sent: who sends less has enough
const FALLEN = 0.97;
const BACKED_OFF = 0.85; // of what came through is libwebrtc's new estimate when a queue has grown
// A probe into a line that is full costs a quarter of the rate for some seconds: it is the queue it finds. So it waits
// until the estimate, which rises by itself, has passed what the line is known to carry; or until it has been calm for
// longer than a full line ever is, since far from what it carries the estimate may rise by 1 % a second only.
const WIDER = 1.2;
const WAIT_S = 8;
const LONGER = 1.5; // after each probe that filled the line
const LONGEST_S = 30;

/**
 * Decide once a second which highest rates to set, one after the other; Infinity is none. All rates are bit/s: the
 * browser's estimate, what is sent, what the encoders would take, and the highest rate that is set. `edge`: what the
 * line was last seen to carry and no more, 0 when that is not known; at first what the browser found by itself.
 */
export function climb(state, { estimate, sent, wanted, cap }) {
  const { estimate: before = estimate, probed = 0, edge = estimate, calmS = 0, waitS = WAIT_S } = state;
  const next = { estimate, probed: 0, edge, calmS: calmS + 1, waitS, caps: [] };
  const fell = estimate < FALLEN * before;
  const used = sent > BUSY * before;
  if (probed && estimate > PASSED * probed) Object.assign(next, { edge: 0, waitS: WAIT_S });
  else if (probed || fell) {
    next.edge = Math.max(fell ? estimate / BACKED_OFF : estimate, probed && used ? before : 0);
    Object.assign(next, { calmS: 0, waitS: probed ? Math.min(LONGEST_S, LONGER * waitS) : waitS });
  }
  const due = estimate > WIDER * next.edge || next.calmS >= next.waitS;
  const now = due && used && estimate > before;
  if (estimate < wanted && (now || estimate > ROOM * cap)) {
    const far = FAR * estimate < MOST ? Math.round(FAR * estimate) : Infinity;
    next.caps = cap < far ? [far] : [Math.round(NEAR * estimate), far];
    next.probed = Math.min(far, MOST);
  }
  return next;
}

/** Lets the rate of a connection that sends climb, until it is closed. */
export function keepClimbing(pc) {
  let state = {};
  let before = null;
  const timer = setInterval(async () => {
    if (pc.connectionState === "closed") return clearInterval(timer);
    const reports = [...(await pc.getStats()).values()];
    const pair = reports.find(({ type, nominated }) => type === "candidate-pair" && nominated);
    const known = before?.id === pair?.id ? before : null;
    before = pair;
    if (!known || !pair.availableOutgoingBitrate || pc.signalingState !== "stable") return;
    const sent = (8000 * (pair.bytesSent - known.bytesSent)) / (pair.timestamp - known.timestamp);
    state = climb(state, { estimate: pair.availableOutgoingBitrate, sent, wanted: wanted(pc), cap: highest(pc) });
    try {
      for (const cap of state.caps) await limit(pc, cap);
    } catch (problem) {
      console.info("the line is not measured:", problem.message);
    }
  }, EVERY_MS);
}

/** What the encoders at work would take; without end where they were not told. */
function wanted(pc) {
  const cameras = pc.getSenders().filter(({ track }) => track?.kind === "video");
  const encodings = cameras.flatMap((sender) => sender.getParameters().encodings.filter(({ active }) => active));
  return encodings.reduce((sum, { maxBitrate = Infinity }) => sum + maxBitrate, 0);
}

function highest(pc) {
  return Number(pc.currentRemoteDescription.sdp.match(/^b=TIAS:(\d+)/m)?.[1] ?? Infinity);
}

/** Agree once more on what is agreed on, with another highest rate. */
function limit(pc, cap) {
  const { sdp: offer } = pc.currentLocalDescription;
  const plain = pc.currentRemoteDescription.sdp.replace(/^b=.*\r\n/gm, "");
  const line = cap < Infinity ? `b=TIAS:${cap}\r\n` : "";
  const answer = plain.replace(/^(m=video .*\r\nc=.*\r\n)/gm, `$1${line}`);
  // Both at once: nobody else comes between them.
  return Promise.all([
    pc.setLocalDescription({ type: "offer", sdp: offer }),
    pc.setRemoteDescription({ type: "answer", sdp: answer }),
  ]);
}
