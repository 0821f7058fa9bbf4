// The events of a run over the public API, to the end of the run: a connection that breaks is taken up again with
// `Last-Event-ID`, at whatever server answers, and nothing is lost or comes twice.
//
//   for await (const {event, data, id} of follow(url, {run, after})) …

const PAUSES = [200, 500, 1000, 2000, 5000];
const ACTIVE = ["pending", "running"];

export class ApiError extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

export const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** A call of the API: its JSON, or null. Throws ApiError. */
export async function call(url, { method = "GET", body, headers = {} } = {}) {
  const answer = await fetch(url, {
    method,
    headers: { accept: "application/json", ...(body === undefined ? {} : { "content-type": "application/json" }), ...headers },
    body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await answer.text();
  let value = null;
  try {
    value = text ? JSON.parse(text) : null;
  } catch {
    value = { detail: text.slice(0, 300) };
  }
  if (!answer.ok) throw new ApiError(answer.status, value?.detail ?? `${answer.status}`);
  return value;
}

/** Frames of an event stream as they come: `{event, data, id}`; `{beat: true}` for a comment. */
async function* frames(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let parts = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      parts.push(value);
      if (!value.includes("\n")) continue; // long lines come in many pieces: they are joined once
      const blocks = parts.join("").replaceAll("\r\n", "\n").split("\n\n");
      parts = [blocks.pop()];
      for (const block of blocks) {
        const frame = { event: "message", data: "", id: null };
        let beat = false;
        for (const one of block.split("\n")) {
          const at = one.indexOf(":");
          const [name, text] = [one.slice(0, at), one.slice(at + 1).replace(/^ /, "")];
          if (at === 0) beat = true;
          else if (name === "data") frame.data += text;
          else if (name === "event" || name === "id") frame[name] = text;
        }
        if (frame.data) yield { ...frame, data: JSON.parse(frame.data) };
        else if (beat) yield { beat: true };
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/**
 * Events of the run until it is over, of which `found(run)` is told. `start`: the request that makes the run
 * (`{url, body}`), which may be sent again because it has an Idempotency-Key; or `run` is one that is there, from
 * after the event `after` ("-1": all that is kept). `broken(n)`: the connection was lost, the n-th time in a row.
 */
export async function* follow({ start, run, base, after = "-1", found, broken, signal }) {
  let [thread, id, last] = [run?.thread_id, run?.run_id, after];
  for (let failures = 0; ; ) {
    try {
      const answer = id === undefined
        ? await fetch(start.url, { method: "POST", headers: { "content-type": "application/json", ...start.headers }, body: JSON.stringify(start.body), signal })
        : await fetch(`${base}/threads/${thread}/runs/${id}/stream`, { headers: { "last-event-id": last }, signal });
      if (!answer.ok) {
        const text = await answer.text();
        let detail = text.slice(0, 300);
        try { detail = JSON.parse(text).detail ?? detail; } catch { /* no JSON: the text as it is */ }
        if (answer.status < 500) throw new ApiError(answer.status, detail);
        throw new TypeError(detail);
      }
      const place = answer.headers.get("content-location")?.match(/threads\/([^/]+)\/runs\/([^/]+)/);
      if (id === undefined && place) {
        [, thread, id] = place;
        found?.({ thread_id: thread, run_id: id });
      }
      if (failures) broken?.(0);
      for await (const frame of frames(answer)) {
        failures = 0;
        if (frame.id) last = frame.id;
        yield frame;
      }
      const state = await call(`${base}/threads/${thread}/runs/${id}`);
      if (!ACTIVE.includes(state.status)) return state;
    } catch (error) {
      if (signal?.aborted) return null;
      if (error instanceof ApiError && error.status < 500) throw error;
    }
    broken?.(++failures);
    await pause(PAUSES[Math.min(failures, PAUSES.length) - 1]);
    if (signal?.aborted) return null;
  }
}
