// <agent-graph>: the drawing of an agent's graph, laid out with dagre.
//
//   <agent-graph data-agent="weather" hx-morph-skip-children></agent-graph>
//       reads GET /assistants/{agent}/graph?xray=true; `data-root` goes before the path if there is one
//   <agent-graph data-graph='{"nodes": […], "edges": […]}' …>
//       draws what it is given, in the form of that call
//   data-lit='{"model": "done", "adjuster:tools": "running"}'
//       states by node: running, done, error, waiting. When the attribute changes (as it does when the page is
//       morphed) the drawing follows.
//   element.highlight(node, state)   one node; null takes its state away. Inside of subgraphs: "outer:inner".
//   element.clear()                  no node has a state
//   nodePath("outer:<task>|inner:<task>")   "outer:inner": the node of a checkpoint namespace
//
// A node inside of a folded subgraph lights that subgraph. Nothing here is more than a drawing: the same graph
// stands below it as a list.

import dagre from "./vendor/dagre.esm.js";

const SVG = "http://www.w3.org/2000/svg";
const LONGEST = 30;
const MOST_TOOLS = 6;
const HIGH = 600; // px; what is higher is made smaller, and then scrolls
const SMALLEST = 0.75;
const STATES = ["error", "waiting", "running", "done"]; // what a folded subgraph shows: the first that one of its nodes has
const TERMINALS = { __start__: "start", __end__: "end" };

/** The node that a checkpoint namespace (`outer:<task id>|inner:<task id>`) names: `outer:inner`. */
export function nodePath(namespace) {
  return namespace.split("|").map((part) => part.split(":")[0]).filter(Boolean).join(":");
}

const parentOf = (id) => (id.includes(":") ? id.slice(0, id.lastIndexOf(":")) : "");
const nameOf = (id) => id.slice(id.lastIndexOf(":") + 1);
const cut = (text) => (text.length > LONGEST ? `${text.slice(0, LONGEST - 1)}…` : text);

let count = 0;
let pen;
function width(text, font) {
  pen ??= document.createElement("canvas").getContext("2d");
  pen.font = font;
  return pen.measureText(text).width;
}

function make(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) if (value != null) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function html(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

/** The graph without what is inside of the folded subgraphs, and its subgraphs from the outermost inwards. */
function visible(graph, folded) {
  const groups = new Set();
  for (const { id } of graph.nodes) for (let up = parentOf(id); up; up = parentOf(up)) groups.add(up);
  const shownAs = (id) => {
    const parts = id.split(":");
    for (let n = 1; n < parts.length; n++) {
      const above = parts.slice(0, n).join(":");
      if (folded.has(above)) return above;
    }
    return id;
  };
  const nodes = new Map();
  for (const node of graph.nodes) {
    const id = shownAs(node.id);
    if (id === node.id) nodes.set(id, { id, tools: node.metadata?.__tools ?? [] });
    else if (!nodes.has(id)) nodes.set(id, { id, tools: [], folded: true });
  }
  const edges = new Map();
  for (const edge of graph.edges) {
    const [source, target] = [shownAs(edge.source), shownAs(edge.target)];
    if (source === target && edge.source !== edge.target) continue;
    if (!nodes.has(source) || !nodes.has(target)) continue;
    const label = typeof edge.data === "string" ? edge.data : "";
    edges.set(`${source}\n${target}\n${label}`, { source, target, label, conditional: Boolean(edge.conditional) });
  }
  const open = [...groups].filter((id) => shownAs(id) === id && !folded.has(id)).sort();
  return { nodes: [...nodes.values()], edges: [...edges.values()], groups: open, all: [...groups] };
}

function arrange({ nodes, edges, groups }, fonts) {
  const graph = new dagre.graphlib.Graph({ multigraph: true, compound: true });
  graph.setGraph({ rankdir: "TB", nodesep: 36, ranksep: 42, edgesep: 22, marginx: 16, marginy: 16 });
  for (const id of groups) graph.setNode(id, {});
  for (const node of nodes) {
    const name = nameOf(node.id);
    node.terminal = TERMINALS[name];
    node.label = node.terminal ?? cut(name);
    node.lines = node.tools.slice(0, MOST_TOOLS).map(cut);
    if (node.tools.length > MOST_TOOLS) node.lines.push(`and ${node.tools.length - MOST_TOOLS} more`);
    const inner = node.id.includes(":");
    const widest = Math.max(width(node.label, fonts.label), ...node.lines.map((line) => width(line, fonts.small)));
    node.dot = Boolean(node.terminal) && inner;
    node.width = node.dot ? 14 : Math.max(node.terminal ? 64 : 88, Math.ceil(widest) + 36);
    node.height = node.dot ? 14 : node.terminal ? 32 : 40 + (node.lines.length ? 4 + node.lines.length * 17 : 0);
    graph.setNode(node.id, node);
  }
  for (const id of [...groups, ...nodes.map((node) => node.id)]) {
    if (groups.includes(parentOf(id))) graph.setParent(id, parentOf(id));
  }
  edges.forEach((edge, n) => {
    if (edge.source === edge.target) return; // dagre loses these inside of subgraphs: see `loop`
    const label = cut(edge.label);
    const size = label ? { width: width(label, fonts.small) + 12, height: 20 } : { width: 0, height: 0 };
    graph.setEdge(edge.source, edge.target, { ...edge, label, ...size, labelpos: "c" }, String(n));
  });
  dagre.layout(graph);
  return graph;
}

/** A smooth line through the middle of what dagre gives as corners. */
function line(points) {
  const at = ({ x, y }) => `${x.toFixed(1)} ${y.toFixed(1)}`;
  let path = `M${at(points[0])}`;
  for (let n = 1; n < points.length - 1; n++) {
    const [here, next] = [points[n], points[n + 1]];
    const end = n === points.length - 2 ? next : { x: (here.x + next.x) / 2, y: (here.y + next.y) / 2 };
    path += `Q${at(here)} ${at(end)}`;
  }
  return points.length === 2 ? `${path}L${at(points[1])}` : path;
}

const LOOP = 26;

/** The way from a node's right side back to it. */
function loop({ x, y, width: w }) {
  const right = x + w / 2;
  return `M${right} ${y - 9}C${right + LOOP} ${y - 16} ${right + LOOP} ${y + 16} ${right + 1} ${y + 9}`;
}

class AgentGraph extends HTMLElement {
  static observedAttributes = ["data-lit", "data-graph", "data-agent"];
  #graph = null;
  #folded = new Set();
  #states = new Map();
  #zoom = null;
  #number = ++count;

  connectedCallback() { this.#read(); }

  attributeChangedCallback(name, before, after) {
    if (!this.isConnected || before === after) return;
    if (name === "data-lit") this.#take();
    else this.#read();
  }

  /** Give a node a state (running, done, error, waiting), or with null none. */
  highlight(node, state = "running") {
    if (state) this.#states.set(node, state);
    else this.#states.delete(node);
    this.#light();
  }

  clear() {
    this.#states.clear();
    this.#light();
  }

  async #read() {
    this.#take();
    try {
      if (this.dataset.graph) this.#graph = JSON.parse(this.dataset.graph);
      else if (this.dataset.agent) {
        const agent = this.dataset.agent;
        const path = `${this.dataset.root ?? ""}/assistants/${encodeURIComponent(agent)}/graph?xray=true`;
        const answer = await fetch(path, { headers: { accept: "application/json" } });
        const body = await answer.json();
        if (agent !== this.dataset.agent) return; // another one was chosen meanwhile
        if (!answer.ok) throw new Error(body.detail);
        this.#graph = body;
      } else return;
      this.#zoom = null;
      this.#draw();
    } catch (error) {
      this.replaceChildren(html("p", { className: "empty", textContent: `No drawing: ${error.message}`.slice(0, 300) }));
    }
  }

  #take() {
    if (!this.dataset.lit) return;
    this.#states = new Map(Object.entries(JSON.parse(this.dataset.lit)));
    this.#light();
  }

  #draw() {
    const family = getComputedStyle(this).fontFamily;
    const shown = visible(this.#graph, this.#folded);
    const graph = arrange(shown, { label: `600 14px ${family}`, small: `12px ${family}` });
    const ends = shown.edges.filter((edge) => edge.source === edge.target).map(({ source }) => graph.node(source));
    const size = { ...graph.graph() };
    size.width = Math.max(size.width, ...ends.map(({ x, width: w }) => x + w / 2 + LOOP));
    const head = `agent-graph-${this.#number}`;
    const svg = make("svg", { viewBox: `0 0 ${size.width} ${size.height}`, role: "img", "aria-label": this.#words(shown) });
    svg.append(
      make("defs", {}, make("marker",
        { id: head, viewBox: "0 0 10 10", refX: 9, refY: 5, markerWidth: 8, markerHeight: 8, orient: "auto-start-reverse" },
        make("path", { d: "M1 1 9 5 1 9z", class: "head" }))),
    );
    for (const id of shown.groups) {
      const { x, y, width: w, height: h } = graph.node(id);
      svg.append(make("g", { class: "group", "data-node": id },
        make("rect", { x: x - w / 2, y: y - h / 2, width: w, height: h, rx: 12 }),
        make("text", { x: x - w / 2 + 10, y: y - h / 2 + 17 }, cut(nameOf(id)))));
    }
    const draw = (d, conditional) =>
      svg.append(make("path", { d, class: conditional ? "edge conditional" : "edge", "marker-end": `url(#${head})` }));
    for (const { source, target, conditional } of shown.edges) {
      if (source === target) draw(loop(graph.node(source)), conditional);
    }
    for (const edge of graph.edges()) {
      const drawn = graph.edge(edge);
      draw(line(drawn.points), drawn.conditional);
      if (drawn.label) {
        svg.append(make("g", { class: "edge-label" },
          make("rect", { x: drawn.x - drawn.width / 2, y: drawn.y - 10, width: drawn.width, height: 20, rx: 5 }),
          make("text", { x: drawn.x, y: drawn.y + 4 }, drawn.label)));
      }
    }
    for (const node of shown.nodes) svg.append(this.#box(graph.node(node.id)));
    this.#show(svg, size, shown);
    this.#light();
  }

  #box({ id, x, y, width: w, height: h, terminal, dot, label, lines, folded }) {
    const kind = dot ? "node terminal dot" : terminal ? "node terminal" : folded ? "node folded" : "node";
    const box = make("g", { class: kind, "data-node": id }, make("title", {}, id.replaceAll(":", " › ")));
    const rect = (by) => make("rect",
      { x: x - w / 2 + by, y: y - h / 2 + by, width: w, height: h, rx: terminal ? h / 2 : 9 });
    if (folded) box.append(rect(4));
    box.append(rect(0));
    if (dot) return box;
    const top = y - h / 2;
    box.append(make("text", { x, y: lines.length ? top + 25 : y + 5 }, label));
    lines.forEach((text, n) => box.append(make("text", { x, y: top + 45 + n * 17, class: "small" }, text)));
    return box;
  }

  #show(svg, size, shown) {
    const frame = html("div", { className: "graph-frame", tabIndex: 0 }, svg);
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", "Graph, scrolls");
    const tools = html("div", { className: "graph-tools" });
    const button = (text, label, act) => {
      const one = html("button", { type: "button", className: "quiet", textContent: text });
      if (label) one.setAttribute("aria-label", label);
      one.addEventListener("click", act);
      tools.append(one);
    };
    const scale = (zoom) => {
      this.#zoom = Math.min(2, Math.max(0.3, zoom));
      svg.setAttribute("width", Math.round(size.width * this.#zoom));
      svg.setAttribute("height", Math.round(size.height * this.#zoom));
    };
    if (shown.all.length) {
      const open = shown.groups.length > 0;
      button(open ? "Fold subgraphs" : "Unfold subgraphs", "", () => {
        this.#folded = new Set(open ? shown.all : []);
        this.#zoom = null;
        this.#draw();
        this.querySelector(".graph-tools button").focus();
      });
    }
    button("−", "Smaller", () => scale(this.#zoom / 1.2));
    button("+", "Larger", () => scale(this.#zoom * 1.2));
    this.replaceChildren(tools, frame, this.#list(shown));
    const fit = Math.min(1, (this.clientWidth - 4) / size.width, HIGH / size.height);
    scale(this.#zoom ?? Math.max(SMALLEST, fit));
  }

  /** What the drawing shows, in words. */
  #list({ nodes, edges }) {
    const name = (id) => TERMINALS[id] ?? id.split(":").map((part) => TERMINALS[part] ?? part).join(" › ");
    const rows = nodes.map((node) => {
      const next = edges.filter((edge) => edge.source === node.id);
      const said = next.map((edge) => name(edge.target) + (edge.label ? ` (${edge.label})` : edge.conditional ? " (perhaps)" : ""));
      const tools = node.tools.length ? `, tools ${node.tools.join(", ")}` : "";
      return html("li", { textContent: `${name(node.id)}${tools}${said.length ? ` → ${said.join(", ")}` : ""}` });
    });
    return html("details", {}, html("summary", { className: "hint", textContent: "As a list" }), html("ul", {}, ...rows));
  }

  #words({ nodes, edges }) {
    const steps = nodes.filter((node) => !(nameOf(node.id) in TERMINALS));
    return `Graph with ${steps.length} ${steps.length === 1 ? "node" : "nodes"} and ${edges.length} edges; the list below has them`;
  }

  #light() {
    for (const box of this.querySelectorAll("[data-node]")) {
      const id = box.dataset.node;
      const inside = [...this.#states].filter(([node]) => node === id || node.startsWith(`${id}:`)).map(([, state]) => state);
      const state = this.#states.get(id) ?? STATES.find((one) => inside.includes(one));
      if (state) box.dataset.state = state;
      else delete box.dataset.state;
    }
  }
}

if (!customElements.get("agent-graph")) customElements.define("agent-graph", AgentGraph);
