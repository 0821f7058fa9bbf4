// A form made from a JSON schema: fields for what has a simple type, one box for a list of messages, JSON for the rest.
//
//   const form = schemaForm(schema, example);   // the schema of an object; of anything else it has one field
//   parent.append(form.element);
//   form.value()                                // what stands in it; throws FieldError, which names the field
//
// A field that is not required and left empty is left out.

import { html } from "./json.js";

let count = 0;

export class FieldError extends Error {
  constructor(field, text, input) {
    super(`${field}: ${text}`);
    this.input = input;
  }
}

/** The schema that a `$ref` means, and of `anyOf` with null the other one. */
function resolve(schema, root, depth = 0) {
  if (schema === null || typeof schema !== "object" || depth > 20) return {};
  if (typeof schema.$ref === "string") {
    const found = schema.$ref.replace(/^#\//, "").split("/").reduce((at, part) => at?.[part], root);
    return { ...resolve(found, root, depth + 1), ...(schema.description ? { description: schema.description } : {}) };
  }
  const choices = (schema.anyOf ?? schema.oneOf ?? []).filter((one) => one?.type !== "null");
  if (choices.length === 1) return { ...resolve(choices[0], root, depth + 1), ...schema, type: resolve(choices[0], root).type };
  return schema;
}

function isMessages(schema, root) {
  const found = resolve(schema, root);
  if (found.type !== "array") return false;
  const items = resolve(found.items, root);
  const names = (items.oneOf ?? items.anyOf ?? []).map((one) => String(one?.$ref).split("/").pop());
  return ["HumanMessage", "AIMessage"].every((name) => names.includes(name));
}

function kindOf(schema, root) {
  const found = resolve(schema, root);
  if (Array.isArray(found.enum) && found.enum.every((one) => typeof one !== "object")) return "choice";
  if (isMessages(schema, root)) return "messages";
  return ["string", "number", "integer", "boolean"].includes(found.type) ? found.type : "json";
}

const textOf = (messages) => (Array.isArray(messages) && messages.length === 1 ? contentOf(messages[0]) : null);
function contentOf(message) {
  if (typeof message === "string") return message;
  return typeof message?.content === "string" ? message.content : null;
}

/** One field: `{element, read}`; `read` gives undefined for one that is left out. */
function field(name, schema, root, required, given) {
  const found = resolve(schema, root);
  let kind = kindOf(schema, root);
  if (kind === "messages" && given !== undefined && textOf(given) === null) kind = "json";
  if (kind === "string" && given != null && typeof given !== "string") kind = "json";
  const id = `field-${++count}`;
  const label = name || "Value";
  const start = given === undefined ? found.default : given;
  const hint = [required ? "" : "optional", found.description ?? "", kind === "json" ? "JSON" : ""].filter(Boolean).join(" · ").slice(0, 200);
  let input;
  if (kind === "choice") {
    const options = found.enum.map((one, n) => html("option", { value: String(n), selected: one === start }, String(one)));
    if (!required) options.unshift(html("option", { value: "", selected: start == null }, "–"));
    input = html("select", { id }, ...options);
  } else if (kind === "boolean") {
    input = required
      ? html("input", { id, type: "checkbox", checked: start === true })
      : html("select", { id }, ...["", "true", "false"].map((one) => html("option", { value: one, selected: one === String(start ?? "") }, one || "–")));
  } else if (kind === "number" || kind === "integer") {
    input = html("input", { id, type: "number", step: kind === "integer" ? "1" : "any", value: start ?? "", required });
  } else {
    const text = kind === "messages" ? textOf(start) ?? "" : kind === "string" ? start ?? "" : start === undefined ? "" : JSON.stringify(start, null, 2);
    const rows = Math.min(12, Math.max(kind === "string" ? 1 : 2, Math.ceil(text.length / 70), text.split("\n").length));
    input = html("textarea", { id, rows, value: text, spellcheck: kind !== "json" });
    input.className = kind === "json" ? "code" : "line";
  }
  input.name = name;
  const says = hint ? html("span", { className: "hint", id: `${id}-hint` }, hint) : null;
  if (says) input.setAttribute("aria-describedby", says.id);
  const tick = input.type === "checkbox";
  const element = html("div", { className: tick ? "field check" : "field" },
    ...(tick ? [input, html("label", { htmlFor: id }, label)] : [html("label", { htmlFor: id }, label), input]), says);

  const read = () => {
    const text = input.value;
    if (tick) return input.checked;
    if (kind === "choice") return text === "" ? undefined : found.enum[Number(text)];
    if (kind === "boolean") return text === "" ? undefined : text === "true";
    if (kind === "string") return text === "" && !required ? undefined : text;
    if (kind === "messages") return text === "" ? undefined : [{ type: "human", content: text }];
    if (text.trim() === "") {
      if (required) throw new FieldError(label, "is required", input);
      return undefined;
    }
    if (kind === "json") {
      try {
        return JSON.parse(text);
      } catch (error) {
        throw new FieldError(label, `is not JSON: ${error.message}`, input);
      }
    }
    const number = Number(text);
    if (!Number.isFinite(number)) throw new FieldError(label, "is not a number", input);
    return number;
  };
  return { element, read };
}

export function schemaForm(schema, given) {
  const root = schema ?? {};
  const found = resolve(root, root);
  const properties = found.properties && Object.keys(found.properties).length ? found.properties : null;
  if (!properties) {
    const one = field("", root, root, false, given);
    return { element: html("div", { className: "fields" }, one.element), value: one.read };
  }
  const known = given !== null && typeof given === "object" ? given : {};
  const fields = Object.entries(properties).map(([name, part]) => {
    const required = (found.required ?? []).includes(name);
    return { name, ...field(name, part, root, required, known[name]), required: required || name in known };
  });
  const first = fields.filter((one) => one.required);
  const rest = fields.filter((one) => !one.required);
  const element = html("div", { className: "fields" }, ...first.map((one) => one.element));
  if (rest.length && first.length) {
    element.append(html("details", {}, html("summary", { className: "hint" }, `More fields: ${rest.map((one) => one.name).join(", ").slice(0, 80)}`),
      html("div", { className: "fields" }, ...rest.map((one) => one.element))));
  } else element.append(...rest.map((one) => one.element));
  const value = () => {
    const extra = Object.fromEntries(Object.entries(known).filter(([name]) => !(name in properties)));
    for (const one of fields) {
      const read = one.read();
      if (read !== undefined) extra[one.name] = read;
    }
    return extra;
  };
  return { element, value };
}
