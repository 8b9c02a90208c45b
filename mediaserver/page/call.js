// A call: our own picture, sound and screen going out, everybody else's coming in, as tiles on the stage.

import { keepClimbing } from "./climb.js";
import { roleName, t } from "./i18n.js";
import { encodings, fit } from "./layers.js";
import { Link } from "./link.js";
import { Quality } from "./quality.js";
import { Signal } from "./signal.js";
import { View } from "./view.js";

const FIT_MS = 400; // tiles move for a while
const REFRESH_MS = 60; // events come in bursts; one look at the list serves them all
const HERE = ["participant.", "track.", "room.", "session."];

/** One picture with its name. */
class Tile {
  constructor(stage, { identity, source, own }) {
    this.element = document.createElement("article");
    this.element.className = "tile";
    this.element.dataset.testid = own ? "own-tile" : "tile";
    this.element.dataset.identity = identity;
    this.element.dataset.source = source;
    this.element.dataset.state = "connecting";
    this.element.innerHTML = `
      <video autoplay playsinline></video>
      <div class="face" aria-hidden="true"></div>
      <p class="note" role="status"></p>
      <div class="label"><span class="bars" role="img"><i></i><i></i><i></i></span><svg class="muted"><use href="#i-mic-off"></use></svg><span class="name"></span><span class="role"></span></div>`;
    this.video = this.element.querySelector("video");
    this.video.muted = own;
    if (own && source === "camera") this.element.classList.add("mirrored");
    for (const type of ["resize", "playing", "emptied"]) this.video.addEventListener(type, () => this.#look());
    stage.append(this.element);
  }

  show({ name, role, state, hasPicture, muted, quality = "good" }) {
    this.element.dataset.state = state;
    this.element.dataset.quality = quality;
    this.element.querySelector(".bars").setAttribute("aria-label", t(`quality.${quality}`));
    this.element.querySelector(".bars").title = t(`quality.${quality}`);
    this.element.dataset.picture = hasPicture ? "on" : "off";
    this.element.dataset.sound = muted ? "off" : "on";
    this.element.querySelector(".name").textContent = name;
    this.element.querySelector(".role").textContent = role;
    this.element.querySelector(".face").textContent = [...name][0] ?? "";
    this.element.querySelector(".muted").setAttribute("aria-label", muted ? t("tile.muted") : "");
    const note = { connecting: t("tile.connecting"), reconnecting: t("tile.reconnecting") }[state] ?? "";
    this.element.querySelector(".note").textContent = note;
  }

  /** Play a stream; where the browser wants a touch first, say so. */
  play(stream, onBlocked) {
    if (this.video.srcObject !== stream) this.video.srcObject = stream;
    this.video.play().catch((error) => error.name === "NotAllowedError" && onBlocked());
  }

  remove() {
    this.video.srcObject = null;
    this.element.remove();
  }

  #look() {
    this.element.classList.toggle("portrait", this.video.videoHeight > this.video.videoWidth);
  }
}

/** Another participant: the pictures and sounds of one person, from the connection that brings everybody's. */
class Other {
  constructor(call, identity) {
    this.call = call;
    this.identity = identity;
    this.streams = { camera: new MediaStream(), screen: new MediaStream() };
    this.tiles = { camera: new Tile(call.stage, { identity, source: "camera", own: false }), screen: null };
  }

  /** How wide what comes from a source is shown, device pixels. */
  width(source) {
    return (this.tiles[source]?.element.clientWidth ?? 0) * devicePixelRatio;
  }

  #fill(stream, tracks) {
    for (const old of stream.getTracks()) if (!tracks.includes(old)) stream.removeTrack(old);
    for (const track of tracks) stream.addTrack(track);
  }

  /** Take what the list says of this participant. */
  update(listed) {
    this.listed = listed;
    this.show();
  }

  show() {
    if (!this.listed) return;
    const { name, role, tracks, connected } = this.listed;
    const { view } = this.call;
    this.#fill(this.streams.camera, view?.tracks(this.identity, "camera", "microphone") ?? []);
    this.#fill(this.streams.screen, view?.tracks(this.identity, "screen") ?? []);
    const link = view?.link.state ?? "connecting";
    const shown = name || this.identity;
    const find = (source) => tracks.find((track) => track.source === source);
    const state = connected && link === "connected" ? "live" : link === "connecting" ? "connecting" : "reconnecting";
    const camera = find("camera");
    const microphone = find("microphone");
    this.tiles.camera.show({
      name: shown,
      role: roleName(role),
      state,
      hasPicture: Boolean(camera && !camera.muted),
      muted: !microphone || microphone.muted,
      quality: this.call.quality.of(this.identity),
    });
    this.tiles.camera.play(this.streams.camera, this.call.onBlocked);
    const screen = find("screen");
    if (screen && !this.tiles.screen) {
      this.tiles.screen = new Tile(this.call.stage, { identity: this.identity, source: "screen", own: false });
    } else if (!screen) {
      this.tiles.screen?.remove();
      this.tiles.screen = null;
    }
    if (screen) {
      this.tiles.screen.show({ name: t("tile.screen", { name: shown }), role: "", state, hasPicture: true, muted: false });
      this.tiles.screen.play(this.streams.screen, this.call.onBlocked);
    }
  }

  leave() {
    this.tiles.camera.remove();
    this.tiles.screen?.remove();
  }
}

export class Call extends EventTarget {
  view = null;
  quality = null;
  #others = new Map();
  #refreshing = 0;
  #fitting = 0;
  #sizes = new ResizeObserver(() => this.#fit());
  #stale = false;
  #ownTile = null;
  #screenTile = null;
  #camera = null;
  #screen = null;
  #screenTrack = null;
  #left = false;
  #signal = null;
  #joinedMs;

  constructor(api, devices, stage) {
    super();
    this.api = api;
    this.devices = devices;
    this.stage = stage;
    this.#joinedMs = api.now();
    this.room = api.session.room;
    this.identity = api.session.identity;
    this.onBlocked = () => this.dispatchEvent(new Event("blocked"));
    this.onDevices = () => this.#devicesChanged();
  }

  get micOn() {
    return Boolean(this.devices.microphone?.enabled);
  }

  get camOn() {
    return Boolean(this.devices.camera);
  }

  get sharing() {
    return this.#screenTrack !== null;
  }

  join() {
    this.#signal = new Signal(this.api);
    this.quality = new Quality(
      () => this.#links(),
      (pc, mid) => (pc === this.view?.link.pc ? this.view.sender(mid) : null),
      (report) => this.#signal.request("quality", report).catch((problem) => console.info("not told", problem.message)),
    );
    this.quality.addEventListener("change", () => this.show());
    if (this.api.session.grants.subscribe) {
      this.view = new View(this.#signal);
      this.#sizes.observe(this.stage);
      this.view.addEventListener("change", () => this.show());
      this.view.addEventListener("problem", ({ detail }) => this.dispatchEvent(new CustomEvent("problem", { detail })));
      this.view.link.addEventListener("state", ({ detail }) => {
        this.show();
        this.linkChanged(detail);
      });
    }
    if (this.api.session.grants.publish) {
      this.#ownTile = new Tile(this.stage, { identity: this.identity, source: "camera", own: true });
      this.#camera = this.#publish("camera", (pc) => {
        const stream = new MediaStream();
        const { microphone, camera } = this.devices;
        pc.addTransceiver(microphone ?? "audio", { direction: "sendonly", streams: [stream] });
        pc.addTransceiver(camera ?? "video", { direction: "sendonly", streams: [stream], sendEncodings: encodings(camera) });
      });
      this.devices.addEventListener("change", this.onDevices);
      this.#showOwn();
    }
    this.refresh();
  }

  leave() {
    this.#left = true;
    clearTimeout(this.#refreshing);
    clearTimeout(this.#fitting);
    this.#sizes.disconnect();
    this.devices.removeEventListener("change", this.onDevices);
    this.stopScreen();
    this.#camera?.close();
    this.quality?.close();
    this.view?.close();
    this.#signal?.close();
    this.#ownTile?.remove();
    for (const other of this.#others.values()) other.leave();
    this.#others.clear();
    this.stage.replaceChildren();
  }

  /** Take an event of the stream. */
  take(event) {
    if (!HERE.some((prefix) => event.type.startsWith(prefix))) return;
    if (Date.parse(event.time) < this.#joinedMs - 60_000) return; // history
    const session = event.data.session;
    if (session && (event.type === "session.failed" || event.type === "session.ended")) {
      for (const link of this.#links()) if (link.session === session) link.restart(event.type);
      if (event.type === "session.failed" && event.data.identity === this.identity && event.data.track)
        this.dispatchEvent(new CustomEvent("problem", { detail: event.data })); // such as codec_mismatch
    }
    // Its media process died and the room lives in another one: nobody need wait for the silence to be noticed.
    if (event.type === "room.moved" && Date.parse(event.time) > this.#joinedMs - 2000)
      for (const link of this.#links()) if (!link.isFresh) link.restart(event.type);
    this.refresh();
  }

  /** Look soon who is there. */
  refresh() {
    this.#stale = true;
    if (this.#refreshing || this.#left) return;
    this.#refreshing = setTimeout(async () => {
      this.#stale = false;
      try {
        const { participants } = await this.api.get(`/v1/rooms/${encodeURIComponent(this.room)}/participants`);
        if (!this.#left) this.#update(participants);
      } catch (problem) {
        this.dispatchEvent(new CustomEvent("problem", { detail: problem }));
      } finally {
        this.#refreshing = 0;
        if (this.#stale) this.refresh(); // what changed while the answer was on its way is not in it
      }
    }, REFRESH_MS);
  }

  show() {
    this.#showOwn();
    for (const other of this.#others.values()) other.show();
    this.#fit();
  }

  /** Take no larger pictures than there is room for; a hidden supervisor's stay small. */
  #fit() {
    clearTimeout(this.#fitting);
    if (!this.view || this.api.session.grants.hidden) return;
    this.#fitting = setTimeout(() => this.view.fit((identity, source) => this.#others.get(identity)?.width(source) ?? 0), FIT_MS);
  }

  linkChanged({ state, problem }) {
    if (this.#left) return;
    if (state === "failed") this.dispatchEvent(new CustomEvent("problem", { detail: problem }));
    this.#showOwn();
    this.dispatchEvent(new Event("change"));
  }

  /** Worst state of all connections. */
  get state() {
    const states = [...this.#links()].map((link) => link.state);
    return ["failed", "reconnecting", "connecting"].find((state) => states.includes(state)) ?? "connected";
  }

  async toggleMic() {
    if (!this.devices.microphone) await this.devices.openMicrophone();
    else this.devices.microphone.enabled = !this.devices.microphone.enabled;
    this.#devicesChanged();
    this.#tellMuted("audio", "microphone", !this.micOn);
  }

  /** The camera is stopped, not covered: its light goes out. */
  async toggleCam() {
    if (this.devices.camera) this.devices.stop("camera");
    else await this.devices.openCamera();
    this.#tellMuted("video", "camera", !this.camOn);
  }

  async toggleScreen() {
    if (this.sharing) {
      this.stopScreen();
      return;
    }
    const track = await this.devices.screen();
    track.addEventListener("ended", () => this.stopScreen());
    this.#screenTrack = track;
    const stream = new MediaStream([track]);
    this.#screen = this.#publish("screen", (pc) => {
      pc.addTransceiver(track, { direction: "sendonly", streams: [stream] });
    });
    this.#screenTile = new Tile(this.stage, { identity: this.identity, source: "screen", own: true });
    this.#screenTile.play(stream, this.onBlocked);
    this.#showOwn();
    this.dispatchEvent(new Event("change"));
  }

  stopScreen() {
    if (!this.sharing) return;
    this.#screenTrack.stop();
    this.#screenTrack = null;
    this.#screen.close();
    this.#screen = null;
    this.#screenTile.remove();
    this.#screenTile = null;
    this.dispatchEvent(new Event("change"));
  }

  *#links() {
    if (this.#camera) yield this.#camera;
    if (this.#screen) yield this.#screen;
    if (this.view) yield this.view.link;
  }

  #publish(source, setUp) {
    const link = new Link(this.#signal.exchange("publish", { source }), source, (pc) => {
      setUp(pc);
      keepClimbing(pc);
    });
    link.addEventListener("state", ({ detail }) => {
      this.linkChanged(detail);
      if (detail.state === "connected" && source === "camera") this.#repeatMuted();
    });
    link.addEventListener("trouble", ({ detail }) => this.dispatchEvent(new CustomEvent("problem", { detail })));
    return link;
  }

  #update(participants) {
    const present = participants.filter(
      (one) => one.identity !== this.identity && (one.connected || one.tracks.length > 0),
    );
    for (const one of present) {
      if (!this.#others.has(one.identity)) this.#others.set(one.identity, new Other(this, one.identity));
      this.#others.get(one.identity).update(one);
    }
    for (const [identity, other] of this.#others) {
      if (present.some((one) => one.identity === identity)) continue;
      other.leave();
      this.#others.delete(identity);
    }
    this.dispatchEvent(new Event("change"));
  }

  get alone() {
    return this.#others.size === 0;
  }

  #devicesChanged() {
    const senders = this.#camera?.pc?.getTransceivers() ?? [];
    for (const { sender, receiver } of senders) {
      const track = receiver.track.kind === "audio" ? this.devices.microphone : this.devices.camera;
      const video = receiver.track.kind === "video";
      sender
        .replaceTrack(track)
        .then(() => video && fit(sender, track))
        .catch((error) => console.info("the connection is being remade", error.message));
    }
    this.#showOwn();
    this.dispatchEvent(new Event("change"));
  }

  #showOwn() {
    if (!this.#ownTile) return;
    const { name, role } = this.api.session;
    const shown = (name || this.identity) + t("tile.you");
    const state = { connected: "live", connecting: "connecting" }[this.#camera.state] ?? "reconnecting";
    this.#ownTile.show({ name: shown, role: roleName(role), state, hasPicture: this.camOn, muted: !this.micOn, quality: this.quality.of(null) });
    const current = this.#ownTile.video.srcObject?.getVideoTracks()[0] ?? null;
    if (current !== this.devices.camera) {
      this.#ownTile.video.srcObject = null;
      if (this.devices.camera) this.#ownTile.play(new MediaStream([this.devices.camera]), this.onBlocked);
    }
    this.#screenTile?.show({ name: t("tile.screen", { name: shown }), role: "", state, hasPicture: true, muted: false });
  }

  /** Others and the recording must know that silence and darkness are meant. */
  async #tellMuted(kind, source, muted) {
    try {
      await this.#signal.request("mute", { kind, source, muted });
    } catch (problem) {
      console.info("muting was not told", problem.message);
    }
  }

  #repeatMuted() {
    if (!this.micOn) this.#tellMuted("audio", "microphone", true);
    if (!this.camOn) this.#tellMuted("video", "camera", true);
  }
}
