// The conversation of the playground: messages as they grow, what agents report, results and errors, in one list.
// A message has one entry however often it comes: as tokens, in an update, in each state. Texts are only ever text.

import { clip, cut, html, pretty, tree } from "./json.js";

const MOST_MESSAGES = 200;
const MOST_SHOWN = 20000;
const WHO = { human: "You", ai: "Agent", tool: "Tool", system: "System", function: "Tool" };

const kindOf = (message) => String(message.type ?? message.role ?? "ai").replace(/MessageChunk$/, "").toLowerCase()
  .replace(/^user$/, "human").replace(/^assistant$/, "ai");

/** The text of a message, whose content may be a list of blocks. */
export function textOf(content) {
  if (typeof content === "string") return content;
  if (!Array.isArray(content)) return content == null ? "" : pretty(content);
  return content.map((part) => (typeof part === "string" ? part : part?.text ?? (part?.type ? `[${part.type}]` : ""))).join("");
}

/** What a person would call the text of an input: its only message, or its only field; null if there is none. */
export function saidIn(input) {
  if (typeof input === "string") return input;
  if (input === null || typeof input !== "object") return null;
  const values = Object.values(input);
  if (Array.isArray(input.messages) && values.length === 1) {
    const last = input.messages.at(-1);
    return typeof last === "string" ? last : textOf(last?.content);
  }
  return values.length === 1 && typeof values[0] === "string" ? values[0] : null;
}

export class Talk {
  #list;
  #messages = new Map(); // by id: {element, text, body, calls, pieces, final}
  #echo = null; // what was sent, until the state has it as a message

  constructor(list) { this.#list = list; }

  #add(kind, who, ...children) {
    const element = html("li", { className: `said ${kind}` }, html("p", { className: "who" }, who), ...children);
    const below = document.scrollingElement.scrollHeight - innerHeight - scrollY;
    this.#list.append(element);
    if (below < 80) element.scrollIntoView({ block: "nearest" });
    return element;
  }

  /** What was sent, until it comes back as a message. */
  echo(input) {
    const text = saidIn(input);
    if (text === null) {
      this.#add("human", "Input", tree(input));
      return;
    }
    const last = [...this.#messages.values()].findLast((one) => one.kind === "human");
    if (last?.text === text && last.element === this.#list.lastElementChild) return;
    this.#echo = { text, element: this.#add("human", WHO.human, html("div", { className: "text" }, cut(text))) };
  }

  #entry(id, kind, node) {
    const known = this.#messages.get(id);
    if (known) return known;
    const body = html("div", { className: "text" });
    const calls = html("div", { className: "calls" });
    const who = html("span", {}, WHO[kind] ?? kind);
    const element = this.#add(WHO[kind] ? kind : "ai", who, body, calls);
    if (node) element.firstElementChild.append(html("span", { className: "hint" }, ` ${clip(node, 60)}`));
    const entry = { kind, element, body, calls, who, text: "", pieces: new Map(), final: false };
    this.#messages.set(id, entry);
    return entry;
  }

  /** A piece of a message, from the stream. */
  chunk(message, metadata) {
    const kind = kindOf(message);
    if (kind === "human" || !message.id) return;
    const piece = textOf(message.content);
    const calls = message.tool_call_chunks ?? [];
    if (!this.#messages.has(message.id) && !piece && !calls.length) return; // nothing to see yet
    const entry = this.#entry(message.id, kind, metadata?.langgraph_node);
    if (entry.final) return;
    if (!/Chunk$/.test(message.type ?? "")) {
      this.#finish(entry, message);
      return;
    }
    entry.element.classList.add("growing");
    if (piece) {
      if (entry.text.length < MOST_SHOWN) entry.body.append(piece.slice(0, MOST_SHOWN - entry.text.length));
      entry.text += piece;
    }
    for (const call of calls) {
      const at = call.index ?? 0;
      let part = entry.pieces.get(at);
      if (!part) {
        part = { args: "", shown: html("code", {}) };
        const name = html("b", {}, clip(call.name ?? "", 80));
        entry.calls.append(html("div", { className: "call" }, name, " ", part.shown));
        entry.pieces.set(at, part);
      }
      part.args += call.args ?? "";
      part.shown.textContent = clip(part.args, 400);
    }
    if (message.chunk_position === "last") entry.element.classList.remove("growing");
  }

  #finish(entry, message) {
    entry.final = true;
    entry.element.classList.remove("growing");
    const text = textOf(message.content);
    if (entry.kind === "tool" && message.name) entry.who.textContent = clip(message.name, 80);
    if (message.status === "error") entry.element.classList.add("bad");
    if (text !== entry.text || text.length > MOST_SHOWN) entry.body.replaceChildren(cut(text));
    entry.text = text;
    const calls = message.tool_calls ?? [];
    entry.calls.replaceChildren(...calls.map((call) => html("details", { className: "call" },
      html("summary", {}, html("b", {}, clip(call.name, 80)), " ", html("code", {}, clip(JSON.stringify(call.args) ?? "", 120))),
      html("pre", {}, pretty(call.args)))));
    entry.element.hidden = !text && !calls.length;
  }

  /** The messages of a state: those that are new are added, those that were growing are complete. */
  sync(messages) {
    if (!Array.isArray(messages)) return;
    const shown = messages.slice(-MOST_MESSAGES);
    for (const [n, message] of shown.entries()) {
      if (message === null || typeof message !== "object") continue;
      const id = message.id ?? `${messages.length - shown.length + n}`;
      const kind = kindOf(message);
      if (kind === "human" && !this.#messages.has(id) && this.#echo?.text === textOf(message.content)) {
        const { element } = this.#echo;
        this.#messages.set(id, { kind, element, text: this.#echo.text, final: true });
        this.#echo = null;
        continue;
      }
      const entry = this.#entry(id, kind);
      if (!entry.final) this.#finish(entry, message);
    }
  }

  /** Tokens of an attempt that has failed: they come again. */
  drop() {
    for (const [id, entry] of this.#messages) {
      if (entry.final) continue;
      entry.element.remove();
      this.#messages.delete(id);
    }
  }

  /** Nothing grows any more. */
  still() {
    for (const entry of this.#messages.values()) entry.element.classList.remove("growing");
    this.#echo = null;
  }

  note(who, value, kind = "note") { return this.#add(kind, who, typeof value === "string" ? html("div", { className: "text" }, cut(value)) : tree(value)); }

  put(element) { this.#list.append(element); }
}
