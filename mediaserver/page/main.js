// The page: which screen is shown, what the buttons do, what people are told.

import { Api, Problem } from "./api.js";
import { Call } from "./call.js";
import { Devices, meter } from "./devices.js";
import { onLanguage, problemText, roleName, switchLanguage, t, translate } from "./i18n.js";
import { Recordings } from "./recordings.js";
import { arrange } from "./stage.js";

const byId = (id) => document.getElementById(id);
const api = new Api();
const devices = new Devices();
const recordings = new Recordings(api);
let call = null;
let following = null;
let streaming = true;
let stopMeter = () => {};

const BANNER_MS = 9000;
const LASTING = new Set(["server_gone", "autoplay"]); // they go when it is over
const banners = new Map();

/** Tell a problem in words, once; telling it again shows it for longer. */
function tell(problem) {
  const code = problem.code ?? "other";
  clearTimeout(banners.get(code)?.timer);
  let banner = banners.get(code)?.banner;
  if (!banner) {
    banner = document.createElement("div");
    banner.className = "banner";
    banner.setAttribute("role", "alert");
    banner.dataset.testid = "banner";
    banner.dataset.code = code;
    banner.innerHTML = `<svg aria-hidden="true"><use href="#i-warn"></use></svg><p></p><button class="icon" type="button"><svg><use href="#i-close"></use></svg></button>`;
    banner.querySelector("button").addEventListener("click", () => hush(code));
    byId("banners").append(banner);
  }
  banner.querySelector("p").textContent = problemText(problem);
  banner.querySelector("button").setAttribute("aria-label", t("close"));
  const timer = LASTING.has(code) ? 0 : setTimeout(() => hush(code), BANNER_MS);
  banners.set(code, { banner, timer, problem });
}

function hush(code) {
  clearTimeout(banners.get(code)?.timer);
  banners.get(code)?.banner.remove();
  banners.delete(code);
}

/** Run what a button asks for, and tell why it did not work. */
async function attempt(button, action) {
  button.disabled = true;
  try {
    await action();
  } catch (problem) {
    tell(problem instanceof Problem ? problem : new Problem("other", problem.message));
  } finally {
    button.disabled = false;
  }
}

function go(screen) {
  document.body.dataset.screen = screen;
  for (const id of ["signin", "lobby", "call", "left"]) byId(id).hidden = id !== screen;
  show();
}

function show() {
  const session = document.body.dataset.screen === "signin" ? null : api.session;
  byId("language").textContent = t("language");
  byId("where").hidden = !session;
  if (session) {
    byId("room-name").textContent = session.room;
    byId("own-role").textContent = roleName(session.role);
    byId("lobby-who").textContent = t("lobby.who", { role: roleName(session.role), room: session.room });
  }
  showConnection();
  showControls();
}

function showConnection() {
  const state = call ? (streaming ? call.state : "reconnecting") : "";
  byId("connection").dataset.state = state === "failed" ? "reconnecting" : state;
  byId("connection").textContent = state ? t(`connection.${state === "failed" ? "reconnecting" : state}`) : "";
}

function control(id, on, icon, key, pressed = on) {
  const button = byId(id);
  button.setAttribute("aria-pressed", String(pressed));
  button.querySelector("use").setAttribute("href", `#${icon}`);
  button.querySelector("span").textContent = t(key);
  button.title = t(key);
}

function showControls() {
  if (!call) return;
  const publishes = api.session.grants.publish;
  for (const id of ["mic", "cam", "screen"]) byId(id).hidden = !publishes;
  if (!navigator.mediaDevices?.getDisplayMedia) byId("screen").hidden = true; // phones
  control("mic", call.micOn, call.micOn ? "i-mic" : "i-mic-off", call.micOn ? "call.micOff" : "call.micOn");
  control("cam", call.camOn, call.camOn ? "i-cam" : "i-cam-off", call.camOn ? "call.camOff" : "call.camOn");
  control("screen", call.sharing, call.sharing ? "i-screen-off" : "i-screen", call.sharing ? "call.screenOff" : "call.screenOn");
  const running = recordings.active !== null;
  control("record", running, running ? "i-stop" : "i-record", running ? "call.stopRecord" : "call.record");
  byId("record").hidden = byId("show-recordings").hidden = !recordings.may;
  byId("alone").hidden = !call.alone;
}

async function enter() {
  await (api.session.grants.publish ? lobby() : join());
}

async function lobby() {
  go("lobby");
  await devices.open();
  await listDevices();
}

async function listDevices() {
  const found = await devices.list();
  for (const [kind, list] of Object.entries(found)) {
    const current = devices[kind]?.getSettings().deviceId ?? (devices.chosen[kind] === null ? "none" : "");
    const options = list.map(({ id, name }) => new Option(name, id, false, id === current));
    byId(kind).replaceChildren(...options, new Option(t("lobby.none"), "none", false, current === "none" || list.length === 0));
  }
}

async function choose(kind) {
  const id = byId(kind).value;
  devices.stop(kind);
  devices.chosen[kind] = id === "none" ? null : id;
  if (id !== "none") await devices.open();
}

function showPreview() {
  const track = devices.camera;
  byId("preview").srcObject = track ? new MediaStream([track]) : null;
  byId("preview-none").hidden = Boolean(track);
  stopMeter();
  stopMeter = () => {};
  byId("level").style.setProperty("--level", "0");
  if (devices.microphone && document.body.dataset.screen === "lobby")
    stopMeter = meter(devices.microphone, (level) => byId("level").style.setProperty("--level", level.toFixed(2)));
}

async function join() {
  stopMeter();
  stopMeter = () => {};
  call = new Call(api, devices, byId("stage"));
  call.addEventListener("change", () => {
    showConnection();
    showControls();
    if (call?.state === "connected") hush("worker_unavailable");
  });
  call.addEventListener("problem", ({ detail }) => tell(detail));
  call.addEventListener("blocked", () => tell({ code: "autoplay" }));
  call.join();
  go("call");
  follow();
  recordings.refresh(0);
}

function follow() {
  following?.abort();
  following = new AbortController();
  const mine = following;
  api.follow(
    (event) => {
      call?.take(event);
      recordings.take(event);
    },
    (flowing) => {
      if (mine.signal.aborted) return;
      streaming = flowing;
      if (flowing) {
        hush("server_gone");
        call?.refresh();
        recordings.refresh();
      } else tell({ code: "server_gone" });
      showConnection();
    },
    following.signal,
  );
}

function leave(screen) {
  following?.abort();
  following = null;
  call?.leave();
  call = null;
  devices.close();
  recordings.stopLooking();
  hush("server_gone");
  togglePanel(false);
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  go(screen);
}

function togglePanel(open = byId("panel").hidden) {
  byId("panel").hidden = !open;
  document.body.classList.toggle("with-panel", open);
  byId("show-recordings").setAttribute("aria-expanded", String(open));
  if (open) recordings.refresh(0);
}

arrange(byId("stage"));
byId("language").addEventListener("click", switchLanguage);
onLanguage(() => {
  for (const { banner, problem } of banners.values()) banner.querySelector("p").textContent = problemText(problem);
  show();
  call?.show();
  recordings.show();
  if (document.body.dataset.screen === "lobby") listDevices();
});
byId("signin-form").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(event.submitter, async () => {
    await api.signIn(byId("code").value.trim());
    byId("code").value = "";
    await enter();
  });
});
byId("camera").addEventListener("change", (event) => attempt(event.target, () => choose("camera")));
byId("microphone").addEventListener("change", (event) => attempt(event.target, () => choose("microphone")));
byId("join").addEventListener("click", (event) => attempt(event.currentTarget, join));
byId("rejoin").addEventListener("click", (event) => attempt(event.currentTarget, enter));
byId("leave").addEventListener("click", () => leave("left"));
byId("sign-out").addEventListener("click", (event) =>
  attempt(event.currentTarget, async () => {
    await api.signOut();
    go("signin");
  }),
);
byId("mic").addEventListener("click", (event) => attempt(event.currentTarget, () => call.toggleMic()));
byId("cam").addEventListener("click", (event) => attempt(event.currentTarget, () => call.toggleCam()));
byId("screen").addEventListener("click", (event) => attempt(event.currentTarget, () => call.toggleScreen()));
byId("record").addEventListener("click", (event) => attempt(event.currentTarget, () => recordings.toggle()));
byId("show-recordings").addEventListener("click", () => togglePanel());
byId("close-panel").addEventListener("click", () => togglePanel(false));
devices.addEventListener("change", showPreview);
devices.addEventListener("problem", ({ detail }) => tell(detail));
navigator.mediaDevices?.addEventListener("devicechange", () => document.body.dataset.screen === "lobby" && listDevices());
recordings.addEventListener("change", showControls);
recordings.addEventListener("problem", ({ detail }) => tell(detail));
api.addEventListener("signedout", ({ detail }) => {
  leave("signin");
  tell(detail);
});
addEventListener("pagehide", () => call?.leave());
addEventListener("pageshow", (event) => event.persisted && location.reload());
addEventListener("pointerdown", () => {
  if (!banners.has("autoplay")) return;
  hush("autoplay");
  call?.show();
});

// An invitation opened while the page is already there changes the fragment only.
addEventListener("hashchange", () => {
  if (!location.hash.startsWith("#code=")) return;
  leave("loading");
  begin();
});

async function begin() {
  translate();
  const code = new URLSearchParams(location.hash.slice(1)).get("code");
  if (code) history.replaceState(null, "", location.pathname); // a used code is worth nothing, but nobody need see it
  try {
    if (code) await api.signIn(code);
    else if ((await api.resume()) === null) return go("signin");
    await enter();
  } catch (problem) {
    // The code may have been used by this very browser before a reload.
    if (code && problem.code === "code_invalid" && (await api.resume().catch(() => null))) return enter();
    go("signin");
    tell(problem);
  }
}

begin();
