// JSON as DOM, never as HTML: what agents and models say is only ever put into text nodes, cut to a sensible length.

const MOST_TEXT = 20000;
const LONG_TEXT = 300;
const MOST_PARTS = 200;
const DEEPEST = 12;

/** An element with properties and children; texts among the children are text. */
export function html(name, properties = {}, ...children) {
  const { data, ...rest } = properties;
  const element = Object.assign(document.createElement(name), rest);
  for (const [key, value] of Object.entries(data ?? {})) element.dataset[key] = value;
  element.append(...children.filter((child) => child != null));
  return element;
}

/** At most `MOST_TEXT` characters, and how many there were if there were more. */
export function cut(text, most = MOST_TEXT) {
  const said = String(text);
  return said.length > most ? `${said.slice(0, most)}\n… cut, ${said.length.toLocaleString("en")} characters: the API has the whole` : said;
}

/** One line of at most `most` characters. */
export function clip(text, most) {
  const line = String(text ?? "").slice(0, most * 4).replace(/\s+/g, " ").trim();
  return line.length > most ? `${line.slice(0, most - 1)}…` : line;
}

/** Indented JSON, cut. */
export function pretty(value) {
  return cut(JSON.stringify(value, null, 2) ?? "");
}

const isTree = (value) => value !== null && typeof value === "object" && Object.keys(value).length > 0;

/** Any JSON value, as the macro `tree` of the templates shows it: folded below the first level. */
export function tree(value, depth = 0) {
  if (!isTree(value)) return leaf(value);
  if (depth >= DEEPEST) return html("pre", {}, pretty(value));
  const list = Array.isArray(value);
  const entries = Object.entries(value);
  const box = html(list ? "ol" : "ul", { className: list ? "tree" : "tree keys", ...(list ? { start: 0 } : {}) });
  for (const [key, one] of entries.slice(0, MOST_PARTS)) {
    const name = list ? "" : `${clip(key, 200)} `;
    if (isTree(one)) {
      const size = html("span", { className: "hint" }, `${Array.isArray(one) ? "[]" : "{}"} ${Object.keys(one).length}`);
      const fold = html("details", { open: depth < 1 }, html("summary", {}, name, size));
      const fill = () => { if (fold.open && fold.childElementCount === 1) fold.append(tree(one, depth + 1)); };
      fold.addEventListener("toggle", fill); // what is never opened is never made
      fill();
      box.append(html("li", {}, fold));
    } else if (list) box.append(html("li", {}, leaf(one)));
    else box.append(html("li", {}, html("span", { className: "key" }, name), html("div", { className: "value" }, leaf(one))));
  }
  if (entries.length > MOST_PARTS) box.append(html("li", { className: "hint" }, `and ${entries.length - MOST_PARTS} more`));
  return box;
}

function leaf(value) {
  if (typeof value !== "string") return html("code", {}, pretty(value));
  if (value.length <= LONG_TEXT) return html("span", { className: "text" }, value);
  const size = html("span", { className: "hint" }, ` ${value.length.toLocaleString("en")} characters`);
  return html("details", { className: "long" }, html("summary", {}, clip(value, 200), size), html("pre", {}, cut(value)));
}
