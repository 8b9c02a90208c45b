// Camera, microphone and screen: what the browser gives, and clear names for why it does not.

import { Problem } from "./api.js";

const PICTURE = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 25, max: 30 } };
const SOUND = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };

function named(error) {
  if (error.name === "NotAllowedError" || error.name === "SecurityError") return new Problem("camera_denied", error.message);
  if (error.name === "NotFoundError" || error.name === "OverconstrainedError") return new Problem("no_camera", error.message);
  if (error.name === "NotReadableError" || error.name === "AbortError") return new Problem("camera_busy", error.message);
  return new Problem("other", `${error.name}: ${error.message}`);
}

export class Devices extends EventTarget {
  /** Ids the person chose; "" is the browser's choice, null is none. */
  chosen = { camera: "", microphone: "" };
  camera = null;
  microphone = null;

  /** Open what was chosen; what fails is left out and told as a "problem" event. */
  async open() {
    if (!navigator.mediaDevices?.getUserMedia) {
      this.#tell(new Problem("insecure_context"));
      return;
    }
    try {
      if (this.chosen.camera !== null && this.chosen.microphone !== null && !this.camera && !this.microphone) {
        // Asked for together, so that the browser asks the person once.
        const stream = await navigator.mediaDevices.getUserMedia({ video: this.#picture(), audio: this.#sound() });
        this.#keep("camera", stream.getVideoTracks()[0]);
        this.#keep("microphone", stream.getAudioTracks()[0]);
        return;
      }
    } catch (error) {
      this.#tell(named(error)); // then one by one: a machine may have only one of them
    }
    if (this.chosen.camera !== null && !this.camera) await this.openCamera().catch((problem) => this.#tell(problem));
    if (this.chosen.microphone !== null && !this.microphone)
      await this.openMicrophone().catch((problem) => this.#tell(problem));
  }

  async openCamera() {
    this.#keep("camera", (await this.#get({ video: this.#picture() })).getVideoTracks()[0]);
  }

  async openMicrophone() {
    this.#keep("microphone", (await this.#get({ audio: this.#sound() })).getAudioTracks()[0]);
  }

  /** Stop a device, so that its light goes out. */
  stop(kind) {
    this[kind]?.stop();
    this[kind] = null;
    this.dispatchEvent(new Event("change"));
  }

  close() {
    this.stop("camera");
    this.stop("microphone");
  }

  /** List devices as {camera: [{id, name}], microphone: […]}; names are there once access was given. */
  async list() {
    const found = { camera: [], microphone: [] };
    const all = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
    for (const { kind, deviceId, label } of all) {
      const list = { videoinput: found.camera, audioinput: found.microphone }[kind];
      if (list && deviceId) list.push({ id: deviceId, name: label || `${list.length + 1}` });
    }
    return found;
  }

  /** Ask for a screen; its track ends when the person stops sharing in the browser. */
  async screen() {
    if (!navigator.mediaDevices?.getDisplayMedia) throw new Problem("insecure_context");
    try {
      const stream = await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: { ideal: 15, max: 30 } } });
      const [track] = stream.getVideoTracks();
      track.contentHint = "detail"; // text stays sharp; frames are dropped instead
      return track;
    } catch (error) {
      throw new Problem("screen_denied", error.message);
    }
  }

  #picture() {
    return this.chosen.camera ? { ...PICTURE, deviceId: { exact: this.chosen.camera } } : PICTURE;
  }

  #sound() {
    return this.chosen.microphone ? { ...SOUND, deviceId: { exact: this.chosen.microphone } } : SOUND;
  }

  async #get(constraints) {
    try {
      return await navigator.mediaDevices.getUserMedia(constraints);
    } catch (error) {
      throw named(error);
    }
  }

  #keep(kind, track) {
    this[kind]?.stop();
    this[kind] = track;
    track.addEventListener("ended", () => {
      if (this[kind] === track) this.stop(kind); // unplugged, or permission was taken back
    });
    this.dispatchEvent(new Event("change"));
  }

  #tell(problem) {
    this.dispatchEvent(new CustomEvent("problem", { detail: problem }));
  }
}

/** Show how loud a track is, 0 to 1, until stop() is called. */
export function meter(track, show) {
  const context = new AudioContext();
  const analyser = context.createAnalyser();
  analyser.fftSize = 512;
  context.createMediaStreamSource(new MediaStream([track])).connect(analyser);
  const samples = new Float32Array(analyser.fftSize);
  const timer = setInterval(() => {
    analyser.getFloatTimeDomainData(samples);
    show(Math.min(1, Math.sqrt(samples.reduce((sum, value) => sum + value * value, 0) / samples.length) * 4));
  }, 80);
  return () => {
    clearInterval(timer);
    context.close();
  };
}
