// <play-ground>: talk to an agent over the public API, as any client could.
//
// The address says which agent and which thread (or session). What is shown comes from the API: after a reload the
// state of the thread is read, and the newest run is followed from its first event on, wherever it runs.
// Its only stream is that of the run.

import { cut, html, pretty, tree } from "./json.js";
import { questionCard } from "./question.js";
import { call, follow } from "./runstream.js";
import { FieldError, schemaForm } from "./schemaform.js";
import { Steps } from "./steps.js";
import { Talk } from "./talk.js";

const MODES = ["values", "updates", "messages-tuple", "custom", "tasks"];
const ACTIVE = ["pending", "running"];
const LOOK_MS = 3000; // for answers to open questions that others give

const random = () => [...crypto.getRandomValues(new Uint8Array(16))].map((one) => one.toString(16).padStart(2, "0")).join("");
const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);

class PlayGround extends HTMLElement {
  connectedCallback() {
    if (this.talk) return;
    const { root, agent, thread, key } = this.dataset;
    Object.assign(this, { root, agent, thread: thread || null, key: key || null, exists: "exists" in this.dataset });
    for (const part of this.querySelectorAll("[data-part]")) this[part.dataset.part] = part;
    this.talk = new Talk(this.list);
    this.steps = new Steps(this.stepList, this.querySelector("agent-graph"));
    this.cards = new Map(); // open questions, by token
    this.answering = 0; // answers that are under way
    this.form = this.querySelector("form[data-send]");
    this.form.addEventListener("submit", (event) => { event.preventDefault(); this.send(); });
    this.cancelButton.addEventListener("click", () => this.cancel());
    this.curl.addEventListener("toggle", () => this.showCurl());
    this.form.addEventListener("input", () => this.curl.open && this.showCurl());
    this.copyButton.hidden = !navigator.clipboard;
    this.copyButton.addEventListener("click", () => this.copy());
    this.looking = setInterval(() => this.lookAtQuestions().catch(() => {}), LOOK_MS);
    this.begin();
  }

  disconnectedCallback() {
    clearInterval(this.looking);
    this.leaving?.abort();
  }

  api(path, options) { return call(this.root + path, options); }

  async begin() {
    try {
      const given = this.dataset.example ? JSON.parse(this.dataset.example) : undefined;
      const { input_schema: schema } = await this.api(`/assistants/${encodeURIComponent(this.agent)}/schemas`);
      this.fields = schemaForm(schema, given);
      this.inputs.replaceChildren(this.fields.element);
      this.sendButton.disabled = false;
      if (this.exists) await this.restore();
    } catch (error) {
      this.say(error.message, "bad");
    }
  }

  say(text, kind = "") {
    this.status.textContent = cut(text, 1000);
    this.status.dataset.kind = kind;
  }

  // --- a thread that is there already

  async restore() {
    const [state, runs] = await Promise.all([
      this.api(`/threads/${this.thread}/state`),
      this.api(`/threads/${this.thread}/runs?limit=1`),
    ]);
    this.show(state.values);
    const [run] = runs;
    if (!run) return;
    const messages = state.values?.messages;
    if (ACTIVE.includes(run.status) || !Array.isArray(messages) || !messages.length) {
      if (run.kwargs?.input != null) this.talk.echo(run.kwargs.input);
    }
    await this.watch({ run });
  }

  // --- runs

  payload() {
    const body = { assistant_id: this.agent, input: this.fields.value(), stream_mode: MODES, stream_subgraphs: true, stream_resumable: true };
    for (const name of ["config", "context"]) {
      const box = this.form.elements[name];
      if (!box.value.trim()) continue;
      try {
        body[name] = JSON.parse(box.value);
      } catch (error) {
        box.closest("details").open = true;
        throw new FieldError(name, `is not JSON: ${error.message}`, box);
      }
    }
    return body;
  }

  async send() {
    if (this.leaving || !this.fields) return;
    let body;
    try {
      body = this.payload();
    } catch (error) {
      this.say(error.message, "bad");
      error.input?.focus();
      return;
    }
    this.busy(true);
    this.say("Sending");
    try {
      if (!this.thread) {
        this.thread = (await this.api("/threads", { method: "POST", body: {} })).thread_id;
        const here = new URL(location.href);
        here.searchParams.set("agent", this.agent);
        here.searchParams.set("thread", this.thread);
        history.replaceState(history.state, "", here);
      }
      for (const [token, card] of this.cards) {
        card.close("superseded by new input");
        this.cards.delete(token);
      }
      this.talk.echo(body.input);
      const url = `${this.root}/threads/${this.thread}/runs/stream`;
      const headers = { "idempotency-key": random() };
      await this.watch({ start: { url, headers, body: { ...body, if_not_exists: "create" } } });
    } catch (error) {
      this.say(error.message, "bad");
      this.talk.note("Error", error.message, "bad");
      this.busy(false);
    }
  }

  busy(on) {
    this.sendButton.disabled = on;
    this.cancelButton.hidden = !on;
    this.cancelButton.disabled = !this.run;
  }

  /** Follow a run to its end; `goesOn`: with the answer to a question of the one that was shown. */
  async watch({ start, run, goesOn = false }) {
    this.leaving = new AbortController();
    this.seen = { began: performance.now(), quiet: false, attempt: 1 };
    if (!goesOn) this.steps.clear();
    const found = (one) => {
      this.run = one;
      this.known = one.run_id;
      this.link(one);
      this.cancelButton.disabled = false;
    };
    this.run = null;
    this.busy(true);
    if (run) found(run);
    this.say(run ? "Following the run" : "Waiting for a worker", "busy");
    const broken = (n) => this.say(n ? `Connection lost, trying again (${n})` : "Running", "busy");
    const source = follow({ start, run, base: this.root, found, broken, signal: this.leaving.signal });
    try {
      for (;;) {
        const { value, done } = await source.next();
        if (done) {
          if (value) await this.finish(value);
          return;
        }
        if (value.beat) await this.wait();
        else this.take(value);
      }
    } finally {
      this.leaving = null;
      this.run = null;
      this.talk.still();
      this.busy(false);
    }
  }

  take({ event, data, id }) {
    this.seen.quiet = false;
    const [name, ...namespace] = event.split("|");
    const at = id ? Number(id.split("-")[0]) : Date.now();
    if (name !== "metadata" && name !== "error" && this.status.dataset.kind === "busy") this.say("Running", "busy");
    if (name === "metadata") {
      if (data.attempt > 1 && data.attempt !== this.seen.attempt) {
        this.talk.drop();
        this.steps.again();
        this.talk.note("Attempt", `${data.attempt}: the run goes on after what was finished`);
      }
      this.seen.attempt = data.attempt ?? this.seen.attempt;
    } else if (name === "messages") this.talk.chunk(...data);
    else if (name === "tasks") this.steps.task(namespace, data, at);
    else if (name === "updates") this.steps.update(namespace, data, at);
    else if (name === "custom") this.talk.note("Progress", data);
    else if (name === "error") this.talk.note(data.error ?? "Error", data.message ?? "", "bad");
    else if (name === "values" && !namespace.length) {
      const { __interrupt__: _, ...values } = data;
      this.show(values);
    }
  }

  show(values) {
    if (values === null || typeof values !== "object") return;
    this.values = values;
    this.talk.sync(values.messages);
    this.state.replaceChildren(Object.keys(values).length ? tree(values) : html("p", { className: "hint" }, "Empty"));
  }

  /** Silence: say what the run waits for. */
  async wait() {
    if (!this.seen.quiet) {
      this.seen.quiet = true;
      return;
    }
    if (!this.run) return;
    const run = await this.api(`/threads/${this.thread}/runs/${this.run.run_id}`).catch(() => null);
    if (!run) return;
    const due = run.next_at ? `, next try ${new Date(run.next_at).toLocaleTimeString()}` : "";
    if (run.suspended) this.say("Suspended: it waits for a time, another run or a limit", "busy");
    else if (run.status === "pending" && run.error) this.say(`Attempt ${run.attempt} failed: ${run.error.error}: ${run.error.message}${due}`, "wait");
    else if (run.status === "pending") this.say("Waiting for a worker", "busy");
  }

  async finish(run) {
    const took = seconds(Date.parse(run.updated_at) - Date.parse(run.created_at));
    const questions = await this.api(`/interrupts?status=open&thread_id=${this.thread}`);
    const asks = questions.some((one) => one.run_id === run.run_id) || (questions.length > 0 && run.status === "success");
    if (run.paused) this.say(`Paused after ${run.attempt} attempts: ${run.error?.error ?? ""} ${run.error?.message ?? ""}`, "bad");
    else if (asks) this.say(`Asked a question after ${took}`, "wait");
    else if (run.status === "success") this.say(`Success in ${took}`, "good");
    else this.say(`${run.status === "interrupted" ? "Cancelled" : run.status === "timeout" ? "Timed out" : "Failed"} after ${took}`, "bad");
    this.steps.end(run.status, asks);
    if (run.status === "success" && !asks) this.result();
    this.ask(questions);
  }

  /** What the state holds besides messages, as the last thing said; not again what was last said. */
  result() {
    const { messages, ...rest } = this.values ?? {};
    const last = messages?.length ? messages.at(-1)?.content : null;
    const news = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== last));
    if (!Object.keys(news).length) return;
    this.lastResult?.remove();
    this.lastResult = this.talk.note("Result", news, "result");
  }

  async cancel() {
    if (!this.run) return;
    this.cancelButton.disabled = true;
    this.say("Cancelling", "busy"); // before the request: the stream may tell the end before the answer is there
    try {
      await this.api(`/threads/${this.thread}/runs/${this.run.run_id}/cancel`, { method: "POST" });
    } catch (error) {
      if (error.status !== 404) this.say(error.message, "bad"); // 404: it has just ended
    }
  }

  // --- questions

  ask(questions) {
    for (const [token, card] of this.cards) {
      if (questions.some((one) => one.token === token)) continue;
      card.close("no longer open");
      this.cards.delete(token);
    }
    for (const question of questions) {
      if (this.cards.has(question.token)) continue;
      const card = questionCard(question, (path, body) => this.answer(question, path, body));
      this.cards.set(question.token, card);
      this.talk.put(card.element);
      card.element.scrollIntoView({ block: "nearest" });
    }
  }

  async answer(question, path, body) {
    let run;
    this.answering += 1;
    try {
      run = await this.api(`/interrupts/${encodeURIComponent(question.token)}/${path}`, { method: "POST", body });
    } finally {
      this.answering -= 1;
    }
    this.cards.get(question.token)?.close(path === "reject" ? "You rejected it" : "You answered it");
    this.cards.delete(question.token);
    this.watch({ run, goesOn: true }).catch((error) => this.say(error.message, "bad"));
  }

  /** Somebody else may answer, or the deadline pass: then the run that goes on is followed here, too. */
  async lookAtQuestions() {
    const { seen } = this;
    // what was asked before a run began here, or before an answer was given here, is not news of somebody else
    const late = () => this.leaving || this.answering || this.seen !== seen;
    if (!this.cards.size || document.hidden || late()) return;
    const open = await this.api(`/interrupts?status=open&thread_id=${this.thread}`);
    if (late() || [...this.cards.keys()].every((token) => open.some((one) => one.token === token))) return;
    this.ask(open);
    const [run] = await this.api(`/threads/${this.thread}/runs?limit=1`);
    if (run && run.run_id !== this.known && !late()) await this.watch({ run, goesOn: true });
  }

  // --- what else the page says

  link({ thread_id: thread, run_id: run }) {
    const to = (path, text) => html("a", { href: `${this.root}/console/${path}` }, text);
    this.links.replaceChildren(to(`runs/${thread}/${run}`, "This run"), " · ", to(`threads/${thread}`, "This thread"));
  }

  showCurl() {
    let text;
    try {
      const quoted = (part) => `'${part.replaceAll("'", "'\\''")}'`;
      const path = this.thread ? `/threads/${this.thread}/runs/stream` : "/runs/stream";
      const key = "auth" in this.dataset ? ` -H ${quoted("x-api-key: YOUR_KEY")}` : "";
      const body = this.thread ? { ...this.payload(), if_not_exists: "create" } : this.payload();
      text = `curl -N ${quoted(location.origin + this.root + path)} -H 'content-type: application/json'${key} -d ${quoted(JSON.stringify(body))}`;
    } catch (error) {
      text = error.message;
    }
    this.command = text;
    this.curlText.textContent = cut(text);
  }

  async copy() {
    this.showCurl();
    await navigator.clipboard.writeText(this.command);
    this.copyButton.textContent = "Copied";
    setTimeout(() => { this.copyButton.textContent = "Copy"; }, 1500);
  }
}

customElements.define("play-ground", PlayGround);
