// A question of an agent, to be answered in place: yes, no with a reason, changed arguments, data by a schema, or text.
//
//   const card = questionCard(question, answer);    // a row of GET /interrupts
//   answer(path, body)                              // POST /interrupts/{token}/{path}; whoever calls shows what follows
//   card.close("answered")                          // from now on it only says so

import { clip, cut, html, pretty, tree } from "./json.js";
import { FieldError, schemaForm } from "./schemaform.js";

const HIDDEN = ["question", "deadline", "schema", "action_requests", "review_configs", "description"];

/** Yes, as who asked understands it: LangChain's middleware wants a decision for each action. */
function approval(value) {
  const actions = value?.action_requests;
  if (Array.isArray(actions) && actions.length && !("question" in value)) return { decisions: actions.map(() => ({ type: "approve" })) };
  return true;
}

export function questionCard(question, answer) {
  const asked = question.question;
  const value = asked !== null && typeof asked === "object" ? asked : {};
  const actions = Array.isArray(value.action_requests) ? value.action_requests : [];
  const text = typeof asked === "string" ? asked : value.question ?? value.description ?? "The agent asks";
  const rest = asked !== null && typeof asked === "object"
    ? Object.fromEntries(Object.entries(value).filter(([name]) => !HIDDEN.includes(name))) : {};
  const problem = html("p", { className: "notice bad", role: "alert", hidden: true });
  const element = html("li", { className: "said question", tabIndex: -1, data: { token: question.token } },
    html("p", { className: "who" }, "Question ", question.deadline ? html("count-down", { data: { until: question.deadline } }) : null),
    html("div", { className: "text" }, cut(text)));
  for (const action of actions) {
    element.append(html("div", { className: "call" }, html("b", {}, clip(action?.name ?? action?.action, 80)), tree(action?.args ?? {})));
  }
  if (Object.keys(rest).length) element.append(tree(rest));

  const controls = html("div", { className: "reply" });
  const send = async (path, body) => {
    problem.hidden = true;
    for (const one of controls.querySelectorAll("button")) one.disabled = true;
    try {
      await answer(path, body);
    } catch (error) {
      problem.textContent = cut(error.message, 500);
      problem.hidden = false;
      for (const one of controls.querySelectorAll("button")) one.disabled = false;
    }
  };
  const button = (name, kind, act) => {
    const one = html("button", { type: "button", className: kind }, name);
    one.addEventListener("click", () => {
      try {
        act();
      } catch (error) {
        if (!(error instanceof FieldError)) throw error;
        problem.textContent = error.message;
        problem.hidden = false;
        error.input.focus();
      }
    });
    return one;
  };

  const reason = html("input", { type: "text", placeholder: "optional", maxLength: 2000 });
  const no = html("details", { className: "answer" }, html("summary", {}, "Reject"),
    html("div", { className: "stack" }, html("label", {}, "Reason", reason),
      button("Reject", "danger", () => send("reject", reason.value.trim() ? { reason: reason.value.trim() } : {}))));
  if (value.schema && typeof value.schema === "object") {
    const form = schemaForm(value.schema);
    controls.append(form.element, html("div", { className: "actions" }, button("Answer", "main", () => send("resolve", form.value()))), no);
  } else {
    controls.append(html("div", { className: "actions" }, button("Approve", "main", () => send("resolve", approval(asked)))), no);
    if (actions.length) controls.append(editing(actions, button, send));
    controls.append(free(button, send));
  }
  element.append(controls, problem);
  return {
    element,
    close(how) {
      element.classList.add("closed");
      controls.remove();
      problem.remove();
      element.querySelector("count-down")?.remove();
      element.append(html("p", { className: "hint" }, how));
    },
  };
}

function editing(actions, button, send) {
  const boxes = actions.map((action) => html("textarea", { className: "code", rows: 6, value: pretty(action?.args ?? {}) }));
  return html("details", { className: "answer" }, html("summary", {}, "Edit and approve"), html("div", { className: "stack" },
    ...boxes.map((box, n) => html("label", {}, `Arguments of ${clip(actions[n]?.name, 60)} (JSON)`, box)),
    button("Approve as edited", "main", () => {
      const decisions = boxes.map((box, n) => {
        let args;
        try {
          args = JSON.parse(box.value);
        } catch (error) {
          throw new FieldError("Arguments", `not JSON: ${error.message}`, box);
        }
        return { type: "edit", edited_action: { name: actions[n]?.name, args } };
      });
      send("resolve", { decisions });
    })));
}

function free(button, send) {
  const box = html("textarea", { className: "code", rows: 2 });
  return html("details", { className: "answer" }, html("summary", {}, "Answer with text or JSON"), html("div", { className: "stack" },
    html("label", {}, "Answer", box),
    button("Answer", "main", () => {
      if (!box.value.trim()) throw new FieldError("Answer", "is empty", box);
      let value = box.value;
      try { value = JSON.parse(value); } catch { /* text */ }
      send("resolve", value);
    })));
}
