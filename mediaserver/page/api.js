// The server's API: requests that fail as Problems, a token that renews itself, and the event stream.

/** A refusal with a stable code, or one of this page's own: server_gone. */
export class Problem extends Error {
  constructor(code, detail = "", status = 0, body = {}) {
    super(`${code}: ${detail}`);
    this.code = code;
    this.detail = detail;
    this.status = status;
    this.body = body;
  }

  get retryable() {
    return this.status === 0 || this.status >= 500 || this.status === 429;
  }
}

const TOKEN_CODES = new Set(["token_missing", "token_expired", "token_invalid", "token_revoked"]);
const ICE_SERVER = /<(?<urls>[^>]+)>; rel="ice-server"(?:; username="(?<username>[^"]*)"; credential="(?<credential>[^"]*)")?/g;
const STREAM_SILENCE_MS = 40_000; // the server says something every 15 s

export class Api extends EventTarget {
  #session = null;
  #renewing = null;
  #offsetMs = 0;

  get session() {
    return this.#session;
  }

  /** The server's time as this browser knows it, ms of Unix time, good to about a second. */
  now() {
    return Date.now() + this.#offsetMs;
  }

  /** Exchange a one-time code for a session cookie and a token. */
  async signIn(code) {
    this.#session = await this.#json("POST", "/v1/session", { json: { code }, anonymous: true });
    return this.#session;
  }

  /** Take up the session of the cookie, if there is one; null if not. */
  async resume() {
    this.#session = await this.#fromCookie();
    return this.#session;
  }

  async signOut() {
    await this.#send("DELETE", "/v1/session", { anonymous: true });
    this.#session = null;
  }

  get(path) {
    return this.#json("GET", path);
  }

  post(path, json = {}) {
    return this.#json("POST", path, { json, headers: { "Idempotency-Key": crypto.randomUUID() } });
  }

  /** Restart ICE of a session (RFC 9725, 4.3.3); gives the server's fragment and fresh ICE servers. */
  async restartIce(path, fragment, signal) {
    const response = await this.#send("PATCH", path, {
      body: fragment,
      type: "application/trickle-ice-sdpfrag",
      headers: { "If-Match": "*" },
      signal,
    });
    const links = (response.headers.get("Link") ?? "").matchAll(ICE_SERVER);
    return { fragment: await response.text(), iceServers: [...links].map(({ groups }) => ({ ...groups })) };
  }

  /** End a media session; also while the page is being closed. */
  async hangUp(path) {
    try {
      await this.#send("DELETE", path, { keepalive: true, once: true });
    } catch (problem) {
      console.info("the session had ended already", path, problem.message);
    }
  }

  /** Follow the events until the signal aborts; onState(true) while the stream flows. */
  async follow(onEvent, onState, signal) {
    let after = 0;
    let waitMs = 250;
    while (!signal.aborted) {
      try {
        const silence = new AbortController();
        let timer = setTimeout(() => silence.abort(), STREAM_SILENCE_MS);
        const response = await this.#send("GET", `/v1/events?after=${after}`, {
          accept: "text/event-stream",
          signal: AbortSignal.any([signal, silence.signal]),
        });
        onState(true);
        waitMs = 250;
        const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
        let text = "";
        for (let part = await reader.read(); !part.done; part = await reader.read()) {
          clearTimeout(timer);
          timer = setTimeout(() => silence.abort(), STREAM_SILENCE_MS);
          const frames = (text + part.value).split("\n\n");
          text = frames.pop();
          for (const frame of frames) {
            const data = frame.split("\n").find((line) => line.startsWith("data: "));
            if (data === undefined) continue; // a comment: still here
            const event = JSON.parse(data.slice(6));
            after = Math.max(after, event.seq);
            onEvent(event);
          }
        }
        clearTimeout(timer);
      } catch (problem) {
        if (signal.aborted) return;
        console.info("the event stream broke", problem.message);
      }
      onState(false);
      await new Promise((done) => setTimeout(done, waitMs));
      waitMs = Math.min(2000, waitMs * 2);
    }
  }

  async #json(method, path, options) {
    return (await this.#send(method, path, options)).json();
  }

  async #send(method, path, options = {}) {
    const { json, body, type, accept, signal, keepalive, anonymous, once } = options;
    const headers = { ...options.headers };
    if (json !== undefined) headers["Content-Type"] = "application/json";
    if (type) headers["Content-Type"] = type;
    if (accept) headers.Accept = accept;
    if (!anonymous && this.#session) headers.Authorization = `Bearer ${this.#session.token}`;
    let response;
    try {
      response = await fetch(path, {
        method,
        headers,
        body: json === undefined ? body : JSON.stringify(json),
        signal,
        keepalive,
        cache: "no-store",
        credentials: "same-origin",
      });
    } catch (error) {
      throw new Problem("server_gone", error.message);
    }
    const date = Date.parse(response.headers.get("Date") ?? "");
    if (!Number.isNaN(date) && Math.abs(date - this.now()) > 2000) this.#offsetMs = date - Date.now();
    if (response.ok) return response;
    const answer = await response.json().catch(() => ({}));
    const problem = new Problem(answer.code ?? "other", answer.detail || answer.title || "", response.status, answer);
    if (!anonymous && !once && TOKEN_CODES.has(problem.code)) {
      if (await this.#renew(problem)) return this.#send(method, path, { ...options, once: true });
    }
    throw problem;
  }

  async #fromCookie() {
    try {
      return await this.#json("GET", "/v1/session", { anonymous: true });
    } catch (problem) {
      if (problem.status !== 401 && problem.status !== 403) throw problem;
      return null;
    }
  }

  /** Get a fresh token with the cookie; tells "signedout" if that is over. */
  async #renew(problem) {
    this.#renewing ??= this.#fromCookie().finally(() => (this.#renewing = null));
    const session = await this.#renewing;
    if (session === null && this.#session !== null)
      this.dispatchEvent(new CustomEvent("signedout", { detail: problem })); // its listeners still see who it was
    this.#session = session;
    return session !== null;
  }
}
