// One stream of one chat over WebSocket: connects, resumes by cursor, comes back with jitter.
//
// It knows nothing of what events mean, but for their cursor. Each frame is a JSON array of events; an empty one says
// only that the connection lives. The replica wants to hear that from us too: said when a frame comes, since timers of
// a page in the background are late.

const SILENCE_MS = 45_000; // three heartbeats of the replica
const HEARTBEAT_MS = 10_000; // at least; the replica sends a frame every 15 s
const FIRST_DELAY_MS = 500;
const LARGEST_DELAY_MS = 15_000;
const CLOSE = { notAllowed: 4001, lagged: 4003, draining: 4004, deleted: 4005, protocol: 4006 };

export class Stream {
  /**
   * @param {string} path of the chat, below the replica that served this page
   * @param {{events: (events: object[]) => void, restart: () => void, state: (name: string, text: string) => void}} told
   */
  constructor(path, told) {
    this.path = path;
    this.told = told;
    this.cursor = null;
    this.failures = 0;
    this.heardFrom = 0; // when we last said that we live
    this.timer = 0; // the silence watch while open, the delay while waiting: never both
    this.socket = null;
    this.ended = false;
    window.addEventListener("online", () => this.#hurry());
  }

  connect() {
    clearTimeout(this.timer);
    this.told.state("connecting", "connecting");
    if (this.cursor === null) this.told.restart();
    const url = new URL(`${this.path}/stream`, window.location.href);
    url.protocol = url.protocol === "https:" ? "wss:" : "ws:";
    if (this.cursor !== null) url.searchParams.set("cursor", this.cursor);
    const socket = (this.socket = new WebSocket(url));
    let opened = false;
    socket.onopen = () => {
      opened = true;
      this.told.state("open", "connected");
      this.#watchSilence(socket);
    };
    socket.onmessage = (message) => this.#take(socket, message.data);
    socket.onclose = (close) => {
      if (socket === this.socket) this.#lost(close, opened);
    };
    this.#watchSilence(socket);
  }

  #take(socket, data) {
    if (socket !== this.socket) return; // an older connection has no say any more
    this.#watchSilence(socket);
    this.#sayAlive(socket);
    const events = JSON.parse(data);
    if (events.length === 0) return;
    this.failures = 0;
    this.told.events(events);
    this.cursor = events.at(-1).cursor;
  }

  #sayAlive(socket) {
    const now = performance.now();
    if (now - this.heardFrom < HEARTBEAT_MS || socket.readyState !== WebSocket.OPEN) return;
    this.heardFrom = now;
    socket.send("[]");
  }

  #watchSilence(socket) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => {
      socket.close();
      this.#lost({ code: 1006, reason: "" }, true);
    }, SILENCE_MS);
  }

  async #lost({ code, reason }, opened) {
    clearTimeout(this.timer);
    this.socket = null;
    if (code === CLOSE.deleted) return this.#end("this chat was deleted");
    if (code === CLOSE.notAllowed) return this.#end("not allowed");
    if (code === CLOSE.protocol) this.cursor = null; // the replica does not know our cursor: all anew
    if (!opened && (await this.#isGone())) return this.#end("there is no such chat");
    this.#wait(this.#delay(code, reason), code === CLOSE.draining ? "the replica is stopping" : "connection lost");
  }

  async #isGone() {
    try {
      return (await fetch(this.path)).status === 404;
    } catch {
      return false;
    }
  }

  #delay(code, reason) {
    if (code === CLOSE.lagged) return 0;
    if (code === CLOSE.draining && /^\d{1,6}$/.test(reason)) return Number(reason);
    const most = Math.min(LARGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.failures);
    this.failures += 1;
    return Math.random() * most;
  }

  #wait(delay, why) {
    if (this.ended || this.socket !== null) return;
    clearTimeout(this.timer);
    this.told.state("lost", `${why}; again in ${(delay / 1000).toFixed(1)} s`);
    this.timer = setTimeout(() => this.connect(), delay);
  }

  #hurry() {
    if (!this.ended && this.socket === null) this.connect();
  }

  #end(why) {
    this.ended = true;
    this.told.state("ended", why);
  }
}
