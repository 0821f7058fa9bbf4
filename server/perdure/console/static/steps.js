// The nodes that a run has gone through, as a list, and as lights in the drawing of its graph.
// Times are the server's: event ids begin with its clock.

import { clip, html, tree } from "./json.js";

const MOST = 200;

const pathOf = (namespace) => namespace.map((part) => part.split(":")[0]);
const seconds = (ms) => (ms < 1000 ? `${ms} ms` : `${(ms / 1000).toFixed(1)} s`);

export class Steps {
  #list;
  #graph;
  #tasks = new Map(); // by task id: {element, node, at, state}
  #exact = false; // whether the run tells when nodes begin; if not, only their updates are known

  constructor(list, graph) {
    this.#list = list;
    this.#graph = graph;
  }

  clear() {
    this.#tasks.clear();
    this.#exact = false;
    this.#list.replaceChildren();
    this.#graph?.clear?.();
  }

  /** A new attempt: what was not finished begins again. */
  again() {
    for (const [id, task] of this.#tasks) {
      if (task.state !== "running") continue;
      task.element.remove();
      this.#tasks.delete(id);
      this.#light(task.node);
    }
  }

  #add(id, namespace, name, at) {
    const path = [...pathOf(namespace), name];
    const shown = html("span", { className: "step-name" }, clip(path.join(" › "), 120));
    const time = html("span", { className: "hint num" });
    const element = html("li", { data: { state: "running" } }, html("div", { className: "step" }, shown, time));
    const task = { element, time, node: path.join(":"), at, state: "running" };
    this.#tasks.set(id, task);
    this.#list.append(element);
    if (this.#list.childElementCount > MOST) this.#list.firstElementChild.remove();
    this.#light(task.node);
    return task;
  }

  #end(task, state, at, value) {
    task.state = state;
    task.element.dataset.state = state;
    if (task.at !== at) task.time.textContent = seconds(Math.max(0, at - task.at));
    if (value !== null && typeof value === "object" && Object.keys(value).length) {
      const fold = html("details", {}, html("summary", { className: "hint" }, Object.keys(value).slice(0, 8).join(", ").slice(0, 80)));
      fold.addEventListener("toggle", () => { if (fold.childElementCount === 1) fold.append(tree(value)); });
      task.element.append(fold);
    } else if (typeof value === "string") task.element.append(html("p", { className: "hint" }, clip(value, 300)));
    this.#light(task.node);
  }

  #light(node) {
    const states = [...this.#tasks.values()].filter((task) => task.node === node).map((task) => task.state);
    this.#graph?.highlight?.(node, states.includes("running") ? "running" : states.at(-1) ?? null);
  }

  /** An event of the mode `tasks`: the beginning of a node, or its end. */
  task(namespace, data, at) {
    this.#exact = true;
    const ended = "result" in data || "error" in data;
    const known = this.#tasks.get(data.id);
    // a node that has asked begins again, as the same task, when it has its answer
    const task = known && (ended || known.state === "running") ? known : this.#add(data.id, namespace, data.name, at);
    if (!ended || task.state !== "running") return;
    if (data.error) this.#end(task, "error", at, String(data.error));
    else if (data.interrupts?.length) this.#end(task, "waiting", at);
    else this.#end(task, "done", at, Array.isArray(data.result) ? Object.fromEntries(data.result) : data.result);
  }

  /** An event of the mode `updates`, for runs that tell no more. */
  update(namespace, data, at) {
    if (this.#exact || data === null || typeof data !== "object") return;
    for (const [node, value] of Object.entries(data)) {
      if (node.startsWith("__")) continue;
      this.#end(this.#add(`${node} ${this.#tasks.size}`, namespace, node, at), "done", at, value);
    }
  }

  /** The run is over: whatever still seems to run does not. */
  end(status, asks) {
    for (const task of this.#tasks.values()) {
      if (task.state === "running") this.#end(task, asks ? "waiting" : status === "success" ? "done" : "error", task.at);
    }
  }
}
