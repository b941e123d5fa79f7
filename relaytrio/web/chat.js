// What a chat looks like: events in, elements out. All text is set as text, never as HTML.
//
// A preview (the parts of the answer that is being generated) ends with the first of: a message of a later version,
// `preview_reset`, `history_reset`.

const REASONS = {
  new_attempt: "the attempt failed; a new one begins",
  truncated: "the beginning of the answer is not in memory any more; the message will have it",
  gap: "some of the answer was lost on its way; the message will have it",
  worker_lost: "the replica that was generating is gone; another one begins anew",
  nothing_kept: "the answer ended without a message",
};

export function element(name, { text = "", ...attributes } = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

function textOf(content) {
  return content.map((part) => (part.type === "text" ? String(part.text ?? "") : `[${part.type}]`)).join("");
}

export class ChatView {
  /** @param {{status: Function, queue: Function, notice: Function}} told what is shown elsewhere on the page */
  constructor(list, told) {
    this.list = list;
    this.told = told;
    this.preview = null;
    this.follows = true; // until the person scrolls up
    const scroller = list.parentElement;
    scroller.addEventListener("scroll", () => {
      this.follows = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 60;
    });
    new ResizeObserver(() => this.#follow()).observe(scroller);
  }

  /** The episode whose parts are on the screen; a Stop names it, so that one that comes late stops nothing. */
  get episode() {
    return this.preview?.episode ?? null;
  }

  clear() {
    this.#endPreview();
    this.list.replaceChildren();
  }

  apply(events) {
    for (const event of events) this.#apply(event);
    this.#follow();
  }

  #follow() {
    if (this.follows) this.list.parentElement.scrollTop = this.list.parentElement.scrollHeight;
  }

  #apply(event) {
    switch (event.type) {
      case "message":
        return this.#message(event.message);
      case "message_part":
        return this.#part(event);
      case "preview_reset":
        return this.#previewReset(event);
      case "history_reset":
        return this.#historyReset(event.after_id);
      case "status":
        return this.told.status(event);
      case "queue_update":
        return this.told.queue(event.queue.map(({ id, content }) => ({ id, text: textOf(content) })));
      case "error":
        return this.told.notice("error", `The answer failed: ${event.error.message}`, true);
      case "retry":
        return this.told.notice(
          "retry",
          `Attempt ${event.attempt} failed (${event.error}); the next one in ${event.delay_seconds.toFixed(1)} s.`,
        );
      case "degraded":
        return this.told.notice(event.what, event.ok ? null : `${event.what}: ${event.message}`);
    }
  }

  #message(message) {
    if (this.preview && message.version > this.preview.episode[0]) this.#endPreview();
    const flags = [message.role, `#${message.id}`];
    if (message.interrupted) flags.push("interrupted");
    if (message.truncated) flags.push("truncated");
    this.list.append(this.#item(message.role, flags.join(" · "), textOf(message.content), message.id));
  }

  #part({ episode, part }) {
    if (this.preview?.name !== episode.join(".")) this.#begin(episode);
    this.preview.text.appendData(textOf([part]));
  }

  #begin(episode, about = "assistant · live") {
    this.#endPreview();
    this.told.notice("retry", null);
    const item = this.#item("assistant preview", about, "", 0);
    const text = document.createTextNode("");
    item.lastElementChild.append(text);
    this.list.append(item);
    this.preview = { episode, name: episode.join("."), item, text };
  }

  #previewReset({ reason, first_seq: first }) {
    const episode = this.episode;
    const goesOn = reason === "truncated" || reason === "gap";
    this.#endPreview();
    if (goesOn && episode) this.#begin(episode, `assistant · live, from part ${first}: ${REASONS[reason]}`);
    if (!goesOn) this.told.notice("preview", REASONS[reason] ?? reason, false, 8000);
  }

  #historyReset(afterId) {
    this.#endPreview();
    for (const item of [...this.list.children]) if (Number(item.dataset.id) > afterId) item.remove();
  }

  #endPreview() {
    this.preview?.item.remove();
    this.preview = null;
  }

  #item(kind, about, text, id) {
    const parts = [element("div", { class: "about", text: about }), element("div", { class: "text", text })];
    return element("li", { class: kind, "data-id": id }, ...parts);
  }
}
