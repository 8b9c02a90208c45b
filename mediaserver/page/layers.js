// The sizes in which the camera goes out at once (simulcast): a viewer on a bad line is sent a small one, the recording
// keeps the best. Browsers fix the number when the connection is made; what each carries follows the camera.

const RIDS = ["q", "h", "f"]; // from the smallest, as the server counts
const SMALL = 150_000; // beside sound it fits 300 kbit/s

// libwebrtc sends three sizes from 960 pixels on, two from 480 on (simulcast.cc), and leaves out the *largest* of what is
// too many: so a small camera must not be given more than its pictures bear.
function sizes(track) {
  const { width = 1280, height = 720 } = track?.getSettings() ?? {};
  const side = Math.max(width, height);
  if (side >= 960) return [[4, SMALL], [2, 500_000], [1, 1_700_000]];
  if (side >= 480) return [[2, SMALL], [1, 800_000]];
  return [[1, 300_000]];
}

/** Return what addTransceiver takes for a camera, or for none yet. */
export function encodings(track) {
  const wanted = sizes(track);
  return RIDS.map((rid, at) => ({ rid, ...shape(wanted[at]) }));
}

/** Fit what is sent to another camera. */
export async function fit(sender, track) {
  const wanted = sizes(track);
  const parameters = sender.getParameters();
  const { encodings: now } = parameters;
  if (!track || now?.length !== RIDS.length) return; // a browser that knows no layers sends one
  const changed = now.some((one, at) => one.active !== Boolean(wanted[at]) || one.maxBitrate !== shape(wanted[at]).maxBitrate);
  if (!changed) return;
  for (const [at, one] of now.entries()) Object.assign(one, shape(wanted[at]));
  await sender.setParameters(parameters);
}

function shape(size) {
  const [scaleResolutionDownBy, maxBitrate] = size ?? [1, SMALL];
  return { active: Boolean(size), scaleResolutionDownBy, maxBitrate };
}
