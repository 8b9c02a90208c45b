// The recordings of the room: the sign that one runs, start and stop, the list, the player and the verification.

import { Problem } from "./api.js";
import { locale, problemText, roleName, t, words } from "./i18n.js";

const REFRESH_MS = 150;
const POLL_MS = 700; // while something is being composed
const COMPOSITES = ["composite.mp4", "composite.m4a"];
const SHEET = "contact-sheet.jpg";
const ACTIVE = new Set(["arming", "recording", "paused", "stopping"]);

const byId = (id) => document.getElementById(id);

export function clock(ms) {
  const seconds = Math.max(0, Math.floor(ms / 1000));
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return parts.map((part) => String(part).padStart(2, "0")).join(":");
}

function size(bytes) {
  return bytes < 1e6 ? `${(bytes / 1e3).toFixed(0)} KB` : `${(bytes / 1e6).toFixed(1)} MB`;
}

const time = (text) => (text ? new Date(text).toLocaleString(locale(), { hour12: false }) : "–");

function suggestedNumber() {
  const now = new Date();
  const two = (value) => String(value).padStart(2, "0");
  const day = `${now.getFullYear()}${two(now.getMonth() + 1)}${two(now.getDate())}`;
  return `SL-${day}-${two(now.getHours())}${two(now.getMinutes())}${two(now.getSeconds())}`;
}

/** What is being recorded now, known from events to everybody in the room, from the list to those who may record. */
export class Recordings extends EventTarget {
  #api;
  #list = [];
  #running = new Map(); // id → {since ms, paused}
  #open = null; // recording shown in the player
  #timer = 0;
  #attempt = null;
  #reports = new Map();

  constructor(api) {
    super();
    this.#api = api;
    setInterval(() => this.#sign(), 500);
    byId("start-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#start();
    });
    byId("start-cancel").addEventListener("click", () => byId("start-dialog").close());
    byId("business-no").addEventListener("input", () => (this.#attempt = null));
    byId("close-player").addEventListener("click", () => byId("player").close());
    byId("player").addEventListener("close", () => this.#closePlayer());
    byId("verify").addEventListener("click", () => this.#verify());
    byId("video").addEventListener("error", () => {
      if (byId("video").src) this.#tell(new Problem("playback", byId("video").error?.message));
    });
  }

  get may() {
    return Boolean(this.#api.session?.grants.record);
  }

  /** Id of the recording that runs, null if none does. */
  get active() {
    return this.#running.keys().next().value ?? null;
  }

  take(event) {
    if (!event.type.startsWith("recording.") && !event.type.startsWith("compos") && !event.type.startsWith("file.")) return;
    const id = event.recording;
    if (event.type === "recording.started") this.#running.set(id, { since: Date.parse(event.time), paused: false });
    if (event.type === "recording.paused" && this.#running.has(id)) this.#running.get(id).paused = true;
    if (event.type === "recording.resumed" && this.#running.has(id)) this.#running.get(id).paused = false;
    if (["recording.stopped", "recording.failed", "recording.sealed", "recording.recovered"].includes(event.type))
      this.#running.delete(id);
    this.#sign();
    this.refresh();
  }

  /** Look soon what is there. */
  refresh(delay = REFRESH_MS) {
    if (!this.may) return;
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#load(), delay);
  }

  stopLooking() {
    clearTimeout(this.#timer);
    this.#running.clear();
    this.#sign();
  }

  /** Show everything again, in another language. */
  show() {
    this.#sign();
    this.#showList();
    if (this.#open) this.#showOpen();
  }

  /** Ask for a business number, then start; or stop what runs. */
  async toggle() {
    if (this.active) {
      const id = this.active;
      await this.#api.post(`/v1/recordings/${id}/stop`);
      this.#running.delete(id);
      this.#sign();
      this.refresh(0);
      return;
    }
    this.#attempt = null;
    byId("business-no").value = suggestedNumber();
    byId("start-problem").hidden = true;
    byId("start-dialog").showModal();
    byId("business-no").select();
  }

  async #start() {
    const body = { business_no: byId("business-no").value.trim(), mode: byId("mode").value };
    if (this.#attempt) body.attempt = this.#attempt;
    try {
      const room = encodeURIComponent(this.#api.session.room);
      const made = await this.#api.post(`/v1/rooms/${room}/recordings`, body);
      this.#running.set(made.id, { since: Date.parse(made.armed_at), paused: false });
      byId("start-dialog").close();
      this.#sign();
      this.refresh(0);
    } catch (problem) {
      const again = problem.code === "attempt_required" && problem.body.attempt;
      if (again) this.#attempt = problem.body.attempt;
      byId("start-problem").textContent = again ? t("start.again", { attempt: again }) : problemText(problem);
      byId("start-problem").hidden = false;
    }
  }

  async #load() {
    try {
      const { recordings } = await this.#api.get(
        `/v1/recordings?room=${encodeURIComponent(this.#api.session.room)}&limit=50`,
      );
      this.#list = recordings;
    } catch (problem) {
      this.#tell(problem);
      return;
    }
    const running = this.#list.filter((one) => ACTIVE.has(one.state) && one.state !== "stopping");
    this.#running = new Map(
      running.map((one) => [one.id, { since: Date.parse(one.armed_at ?? one.created_at), paused: one.state === "paused" }]),
    );
    this.#open = this.#list.find((one) => one.id === this.#open?.id) ?? this.#open;
    this.show();
    const busy = this.#list.some(
      (one) => one.state === "stopping" || (!ACTIVE.has(one.state) && ["waiting", "running"].includes(one.composing.state)),
    );
    if (busy) this.refresh(POLL_MS);
  }

  #sign() {
    const running = this.active && this.#running.get(this.active);
    byId("recording-sign").hidden = !running;
    if (running) {
      byId("recording-sign").classList.toggle("paused", running.paused);
      byId("recording-label").textContent = t(running.paused ? "recording.paused" : "recording.on");
      byId("recording-time").textContent = clock(this.#api.now() - running.since);
    }
    this.dispatchEvent(new Event("change"));
  }

  /** Bring the list up to date in place: a row must not vanish under a finger. */
  #showList() {
    byId("no-recordings").hidden = this.#list.length > 0;
    const list = byId("recordings");
    const rows = new Map([...list.children].map((row) => [row.dataset.id, row]));
    this.#list.forEach((one, at) => {
      const row = rows.get(one.id) ?? this.#row(one.id);
      rows.delete(one.id);
      this.#fill(row, one);
      if (list.children[at] !== row) list.insertBefore(row, list.children[at] ?? null);
    });
    for (const row of rows.values()) row.remove();
  }

  #row(id) {
    const row = document.createElement("li");
    row.dataset.id = id;
    row.dataset.testid = "recording";
    row.innerHTML = `<button type="button"><strong></strong><span class="state"></span><span class="when"></span><progress max="1" hidden></progress></button>`;
    row.querySelector("button").addEventListener("click", () => this.#openPlayer(this.#list.find((one) => one.id === id)));
    return row;
  }

  #fill(row, one) {
    row.dataset.state = one.state;
    row.dataset.composing = one.composing.state;
    row.querySelector("button").setAttribute("aria-label", t("recordings.play", { no: one.business_no }));
    row.querySelector("strong").textContent = one.business_no;
    row.querySelector(".state").textContent = t(`state.${one.state}`);
    const ms = one.duration_ms ?? (one.armed_at ? this.#api.now() - Date.parse(one.armed_at) : 0);
    const attempt = one.attempt > 1 ? ` · #${one.attempt}` : "";
    row.querySelector(".when").textContent = `${time(one.armed_at ?? one.created_at)} · ${clock(ms)}${attempt}`;
    const bar = row.querySelector("progress");
    bar.hidden = ACTIVE.has(one.state) || !["waiting", "running"].includes(one.composing.state);
    bar.setAttribute("aria-label", t("composing.running"));
    if (one.composing.progress === null) bar.removeAttribute("value");
    else bar.value = one.composing.progress;
  }

  #openPlayer(one) {
    this.#open = one;
    this.#showOpen();
    byId("player").showModal();
    this.refresh(0);
  }

  #closePlayer() {
    this.#open = null;
    byId("video").removeAttribute("src");
    byId("video").load();
  }

  #showOpen() {
    const one = this.#open;
    byId("player-title").textContent = one.business_no;
    const file = one.files.find((each) => COMPOSITES.includes(each.name)) ?? one.files.find((each) => each.media_type === "video/mp4");
    const address = file ? `/v1/recordings/${one.id}/files/${encodeURIComponent(file.name)}` : "";
    const video = byId("video");
    if (file && video.getAttribute("src") !== address) video.src = address; // the session's cookie goes with it
    video.hidden = !file;
    byId("composing").hidden = Boolean(file);
    const composing = ACTIVE.has(one.state) ? t(`state.${one.state}`) : words(`composing.${one.composing.state}`, { detail: one.composing.detail ?? "" });
    byId("composing-text").textContent = composing ?? "";
    byId("composing-progress").hidden = ACTIVE.has(one.state) || !["waiting", "running"].includes(one.composing.state);
    if (one.composing.progress !== null && one.composing.state === "running") byId("composing-progress").value = one.composing.progress;
    else byId("composing-progress").removeAttribute("value");
    this.#showSheet(one);
    this.#showFacts(one, file);
    byId("verify").disabled = ACTIVE.has(one.state);
    this.#showVerdict();
  }

  #showSheet(one) {
    const has = one.files.some((each) => each.name === SHEET);
    const address = has ? `/v1/recordings/${one.id}/files/${SHEET}` : "";
    byId("sheet").hidden = !has;
    if (has && byId("sheet").getAttribute("href") !== address) {
      byId("sheet").href = address;
      byId("sheet-image").src = address;
    }
  }

  #showFacts(one, file) {
    const people = one.participants.map((each) => [each.name || each.identity, roleName(each.role)].filter(Boolean).join(" "));
    const gaps = one.gaps.map((gap) => `${clock(gap.from_ms)} – ${clock(gap.to_ms)} ${gap.reason}`);
    const facts = [
      ["fact.state", t(`state.${one.state}`) + (one.failure ? ` (${one.failure})` : "")],
      ["fact.began", time(one.armed_at)],
      ["fact.duration", one.duration_ms === null ? "–" : clock(one.duration_ms)],
      ["fact.gaps", gaps.join(", ") || t("fact.noGaps")],
      ["fact.assurance", words(`assurance.${one.assurance}`) ?? one.assurance],
      ["fact.id", one.id],
    ];
    if (one.parts > 1) facts.splice(3, 0, ["fact.parts", String(one.parts)]);
    if (file) facts.push(["fact.size", size(file.plain_bytes)], ["fact.digest", file.plain_sm3]);
    const rows = facts.flatMap(([key, value]) => [
      Object.assign(document.createElement("dt"), { textContent: t(key) }),
      Object.assign(document.createElement("dd"), { textContent: value }),
    ]);
    if (people.length > 0) byId("player-title").textContent = `${one.business_no} · ${people.join("、")}`;
    byId("facts").replaceChildren(...rows);
  }

  async #verify() {
    const { id } = this.#open;
    byId("verify").disabled = true;
    byId("verify").querySelector("span").textContent = t("verify.running");
    try {
      this.#reports.set(id, await this.#api.post(`/v1/recordings/${id}/verify`));
    } catch (problem) {
      this.#tell(problem);
    }
    byId("verify").disabled = false;
    byId("verify").querySelector("span").textContent = t("verify.go");
    if (this.#open?.id !== id) return;
    this.#showVerdict();
    byId("verdict").scrollIntoView({ block: "nearest" });
  }

  #showVerdict() {
    const report = this.#reports.get(this.#open.id);
    const box = byId("verdict");
    box.replaceChildren();
    box.dataset.verdict = report?.verdict ?? "";
    if (!report) return;
    const line = (className, text) => Object.assign(document.createElement("p"), { className, textContent: text });
    box.append(line("headline", t(`verify.${report.verdict}`)), line("counts", t("verify.counts", report)));
    if (report.findings.length === 0) return;
    const list = document.createElement("ul");
    for (const finding of report.findings) {
      const place = [finding.file];
      if (finding.record !== null) place.push(t("verify.record", finding));
      if (finding.begin !== null) place.push(t("verify.bytes", finding));
      if (finding.time) place.push(finding.time);
      const item = document.createElement("li");
      item.dataset.kind = finding.kind;
      const kind = Object.assign(document.createElement("strong"), { textContent: words(`kind.${finding.kind}`) ?? finding.kind });
      item.append(kind, line("place", place.join(" · ")), line("detail", finding.detail));
      list.append(item);
    }
    box.append(list);
  }

  #tell(problem) {
    this.dispatchEvent(new CustomEvent("problem", { detail: problem }));
  }
}
