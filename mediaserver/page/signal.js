// The signalling WebSocket (docs/signal.md): requests with answers, the server's offers, and resuming after a lost socket.

import { Problem } from "./api.js";

const ANSWER_MS = 10_000;
const CONNECT_MS = 3000;
const PROD_MS = 1500; // for the answer to a ping where the network is in doubt
const PING_MS = 15_000;
const PAUSES_MS = [0, 250, 500, 1000, 2000];

/** Events: "offer" (detail: the message), "joined" when a new signalling session began and nothing was resumed. */
export class Signal extends EventTarget {
  #api;
  #socket = null;
  #open = false;
  #closed = false;
  #resume = null;
  #id = 0;
  #lastSeq = 0;
  #pending = new Map();
  #failures = 0;
  #ping = 0;
  #silent = 0;
  #doubted = false;
  #moved = () => this.cut();

  constructor(api) {
    super();
    this.#api = api;
    window.addEventListener("online", this.#moved);
    this.#connect();
  }

  /** Ask; rejects with a Problem. What was not taken before the socket was lost is asked again after a resume. */
  request(type, members = {}) {
    return new Promise((done, fail) => {
      if (this.#closed) return fail(new Problem("server_gone", "signalling has ended"));
      const request = { type, members, done, fail };
      request.timer = setTimeout(() => this.#settle(request, new Problem("server_gone", `no answer to ${type}`)), ANSWER_MS);
      this.#send(request);
    });
  }

  /** What a Link needs of whoever carries its offers; type and members say what is begun. */
  exchange(type, members = {}) {
    return {
      offer: async (_, sdp) => {
        const { session, sdp: answer, ice_servers: iceServers } = await this.request(type, { ...members, sdp });
        return { sdp: answer, location: `/v1/sessions/${session}`, iceServers };
      },
      restartIce: (...given) => {
        if (!this.#doubted) this.#ask(PROD_MS); // the socket goes the same way
        this.#doubted = true;
        return this.#api.restartIce(...given);
      },
      hangUp: (location) => this.#api.hangUp(location),
    };
  }

  close() {
    if (this.#closed) return;
    if (this.#open) this.#socket.send(JSON.stringify({ type: "leave", id: ++this.#id }));
    this.#closed = true;
    window.removeEventListener("online", this.#moved);
    clearInterval(this.#ping);
    clearTimeout(this.#silent);
    this.#socket?.close();
    for (const request of [...this.#pending.values()]) this.#settle(request, new Problem("server_gone", "left"));
  }

  #send(request) {
    this.#pending.delete(request.id);
    request.id = ++this.#id;
    this.#pending.set(request.id, request);
    if (this.#open) this.#socket.send(JSON.stringify({ type: request.type, id: request.id, ...request.members }));
  }

  #settle(request, problem, answer) {
    clearTimeout(request.timer);
    this.#pending.delete(request.id);
    if (problem) request.fail(problem);
    else request.done(answer);
  }

  #connect() {
    const socket = new WebSocket(new URL("/v1/signal", location.href.replace(/^http/, "ws")));
    this.#socket = socket;
    this.#silent = setTimeout(() => this.cut(), CONNECT_MS);
    socket.onopen = () => {
      const known = this.#resume && { resume: this.#resume, last_seq: this.#lastSeq };
      socket.send(JSON.stringify({ type: known ? "resume" : "join", id: ++this.#id, token: this.#api.session.token, ...known }));
    };
    socket.onmessage = ({ data }) => this.#socket === socket && this.#take(JSON.parse(data));
    socket.onclose = ({ code, reason }) => this.#lost(socket, code, reason);
  }

  #take(message) {
    clearTimeout(this.#silent);
    this.#doubted = false;
    if (message.type === "welcome") return this.#welcome(message);
    if (message.type === "pong") return;
    if (message.seq) {
      if (message.seq <= this.#lastSeq) return;
      this.#lastSeq = message.seq;
    }
    const request = this.#pending.get(message.re);
    if (message.type === "error") {
      const { code, detail, status } = message.problem;
      if (request) this.#settle(request, new Problem(code, detail, status, message.problem));
    } else if (message.type === "answered" || message.type === "done") {
      if (request) this.#settle(request, null, message);
    } else this.dispatchEvent(new CustomEvent(message.type, { detail: message }));
  }

  #welcome(message) {
    this.#open = true;
    this.#failures = 0;
    this.#resume = message.resume;
    if (!message.resumed) this.#lastSeq = 0;
    clearInterval(this.#ping);
    this.#ping = setInterval(() => this.#ask(ANSWER_MS), PING_MS);
    // The answers to what it took are on their way; the rest it has never seen.
    const lost = [...this.#pending.values()].filter(({ id }) => !message.resumed || id > message.last_id);
    if (!message.resumed) this.dispatchEvent(new Event("joined"));
    for (const request of lost) this.#send(request);
  }

  /** Ping; give the socket up if nothing comes in time. */
  #ask(limitMs) {
    if (!this.#open) return;
    this.#socket.send(JSON.stringify({ type: "ping", id: ++this.#id, last_seq: this.#lastSeq }));
    clearTimeout(this.#silent);
    this.#silent = setTimeout(() => this.cut(), limitMs);
  }

  /** Give the socket up; a new one takes over. */
  cut() {
    const socket = this.#socket;
    if (!socket) return; // the next one is about to be made
    socket.close();
    this.#lost(socket, 0, "cut");
  }

  #lost(socket, code, reason) {
    if (this.#socket !== socket) return;
    this.#open = this.#doubted = false;
    this.#socket = null;
    clearInterval(this.#ping);
    clearTimeout(this.#silent);
    if (this.#closed) return;
    console.info("signalling broke", code, reason);
    if (reason === "resume_expired") this.#resume = null;
    const pause = PAUSES_MS[Math.min(this.#failures++, PAUSES_MS.length - 1)];
    setTimeout(async () => {
      // Any request renews a token that is over, or tells that the person was signed out.
      const path = `/v1/rooms/${encodeURIComponent(this.#api.session?.room)}/participants`;
      if (code === 4401) await this.#api.get(path).catch((problem) => console.info("no new token", problem.message));
      if (!this.#closed && this.#api.session) this.#connect();
    }, pause);
  }
}
