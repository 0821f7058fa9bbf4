// The JavaScript SDK against a real server, whose address is in WIRE_URL.

import assert from "node:assert/strict";
import { after, test } from "node:test";
import { Client } from "@langchain/langgraph-sdk";

const client = new Client({ apiUrl: process.env.WIRE_URL, apiKey: null });

async function collect(stream) {
  const parts = [];
  for await (const part of stream) parts.push(part);
  return parts;
}

async function until(look) {
  const end = Date.now() + 60_000;
  for (;;) {
    const found = await look();
    if (found) return found;
    assert.ok(Date.now() < end, "the condition was not reached in 60 s");
    await new Promise((done) => setTimeout(done, 20));
  }
}

test("assistants: create, search with pages, graph, schemas, versions", async () => {
  const metadata = { from: "js" };
  const made = await client.assistants.create({ graphId: "tone", name: "From JS", metadata, context: { tone: "dry" } });
  await client.assistants.create({ graphId: "line", name: "Also", metadata });
  const page = await client.assistants.search({ metadata, limit: 1, includePagination: true });
  assert.equal(page.assistants.length, 1);
  assert.equal(page.next, "1");
  assert.equal(await client.assistants.count({ metadata }), 2);
  const graph = await client.assistants.getGraph(made.assistant_id, { xray: true });
  assert.ok(graph.nodes.some((node) => node.id === "hear"));
  assert.ok((await client.assistants.getSchemas(made.assistant_id)).input_schema);
  const changed = await client.assistants.update(made.assistant_id, { name: "Renamed" });
  assert.equal(changed.version, 2);
  assert.deepEqual((await client.assistants.getVersions(made.assistant_id)).map((row) => row.version), [2, 1]);
  await client.assistants.delete(made.assistant_id);
  await assert.rejects(client.assistants.get(made.assistant_id), /404/);
});

test("threads: create, patch, search, state, history, copy, delete", async () => {
  const thread = await client.threads.create({ metadata: { from: "js-threads" } });
  await client.threads.update(thread.thread_id, { metadata: { more: 1 } });
  const [found] = await client.threads.search({ metadata: { from: "js-threads", more: 1 } });
  assert.equal(found.thread_id, thread.thread_id);
  await client.runs.wait(thread.thread_id, "line", { input: { log: ["in"] } });
  const state = await client.threads.getState(thread.thread_id);
  assert.deepEqual(state.values.log, ["in", "a", "b", "c"]);
  const history = await client.threads.getHistory(thread.thread_id, { limit: 10 });
  assert.equal(history.length, 5);
  const before = await client.threads.getHistory(thread.thread_id, {
    before: { configurable: { checkpoint_id: history[1].checkpoint.checkpoint_id } },
  });
  assert.equal(before[0].checkpoint.checkpoint_id, history[2].checkpoint.checkpoint_id);
  await client.threads.updateState(thread.thread_id, { values: { log: ["js"] }, asNode: "a" });
  assert.deepEqual((await client.threads.getState(thread.thread_id)).next, ["b"]);
  const copy = await client.threads.copy(thread.thread_id);
  assert.notEqual(copy.thread_id, thread.thread_id);
  await client.threads.delete(thread.thread_id);
  await assert.rejects(client.threads.get(thread.thread_id), /404/);
});

test("runs: null input means none, streams name their run, modes arrive in order", async () => {
  const thread = await client.threads.create();
  let created;
  const parts = await collect(
    client.runs.stream(thread.thread_id, "line", {
      input: { log: [] },
      streamMode: ["updates", "values"],
      onRunCreated: (run) => (created = run.run_id),
    }),
  );
  assert.equal(parts[0].event, "metadata");
  assert.equal(parts[0].data.run_id, created);
  assert.deepEqual(parts.filter((p) => p.event === "updates").map((p) => Object.keys(p.data)[0]), ["a", "b", "c"]);
  assert.deepEqual(parts.at(-1).data.log, ["a", "b", "c"]);
  assert.equal((await client.runs.get(thread.thread_id, created)).status, "success");
  const again = await client.runs.wait(thread.thread_id, "line", { input: null });
  assert.deepEqual(again.log, ["a", "b", "c"]);
});

test("runs: messages word by word, also stateless", async () => {
  const input = { messages: [{ role: "user", content: "hello" }] };
  const parts = await collect(client.runs.stream(null, "chat", { input, streamMode: "messages-tuple" }));
  const words = parts.filter((p) => p.event === "messages").map((p) => p.data[0].content);
  assert.equal(words.join(""), "You said hello: w0 w1 w2");
  assert.ok(words.length >= 4);
});

test("runs: a failure is an error event and an error of wait", async () => {
  const thread = await client.threads.create();
  const parts = await collect(client.runs.stream(thread.thread_id, "fails", { input: { log: [] } }));
  assert.equal(parts.at(-1).event, "error");
  assert.match(parts.at(-1).data.message, /boom happened/);
  await assert.rejects(client.runs.wait(null, "fails", { input: { log: [] } }), /boom happened/);
});

test("questions: seen, answered, the second answer is refused", async () => {
  const thread = await client.threads.create();
  const asked = await client.runs.wait(thread.thread_id, "asks", { input: { log: [] } });
  const [question] = asked.__interrupt__;
  assert.deepEqual(question.value, { question: "really?" });
  assert.equal((await client.threads.get(thread.thread_id)).status, "interrupted");
  const done = await client.runs.wait(thread.thread_id, "asks", { command: { resume: { [question.id]: "yes" } } });
  assert.equal(done.answer, "yes");
  await assert.rejects(
    client.runs.create(thread.thread_id, "asks", { command: { resume: { [question.id]: "no" } } }),
    /409/,
  );
});

test("runs: cancel and continue", async () => {
  const thread = await client.threads.create();
  const run = await client.runs.create(thread.thread_id, "slow", { input: { seconds: 60 } });
  await until(async () => (await client.threads.getState(thread.thread_id)).next.includes("wait"));
  await client.runs.cancel(thread.thread_id, run.run_id, true);
  assert.equal((await client.runs.get(thread.thread_id, run.run_id)).status, "interrupted");
  await client.threads.updateState(thread.thread_id, { values: { seconds: 0 } });
  const done = await client.runs.wait(thread.thread_id, "slow", { input: null });
  assert.deepEqual(done.log, ["begin", "waited"]);
});

test("runs: a stream is joined where it was left", async () => {
  const thread = await client.threads.create();
  const input = { messages: [{ role: "user", content: "hi" }], words: 30, pause: 0.02 };
  let [run, text, last] = [undefined, "", undefined];
  const options = { input, streamMode: "messages-tuple", streamResumable: true, onRunCreated: (r) => (run = r.run_id) };
  for await (const part of client.runs.stream(thread.thread_id, "chat", options)) {
    if (part.event !== "messages") continue;
    [text, last] = [text + part.data[0].content, part.id];
    if (text.length > 30) break;
  }
  for await (const part of client.runs.joinStream(thread.thread_id, run, { lastEventId: last })) {
    if (part.event === "messages") text += part.data[0].content;
  }
  assert.equal(text, "You said hi:" + Array.from({ length: 30 }, (_, n) => ` w${n}`).join(""));
});

for (const protocol of ["v2-sse", "v2-websocket"]) {
  test(`the event protocol: ${protocol}`, async () => {
    const speaking = new Client({ apiUrl: process.env.WIRE_URL, apiKey: null, streamProtocol: protocol });
    const thread = speaking.threads.stream({ assistantId: "approve" });
    await thread.run.start({ input: { messages: [{ role: "user", content: "pay" }] } });
    await until(() => thread.interrupts.length === 1);
    const { interruptId, namespace } = thread.interrupts[0];
    const response = { decisions: [{ type: "approve" }] };
    await thread.input.respond({ namespace, interrupt_id: interruptId, response });
    const state = await until(async () => {
      const found = await speaking.threads.getState(thread.threadId);
      return found.next.length === 0 && found.values.messages.length === 3 && found;
    });
    assert.equal(state.values.messages.at(-1).content, "paid");
    await thread.close();
  });
}

test("models that speak at once are told apart", async () => {
  const speaking = new Client({ apiUrl: process.env.WIRE_URL, apiKey: null, streamProtocol: "v2-sse" });
  const thread = speaking.threads.stream({ assistantId: "duet" });
  const whole = async (message) => {
    let text = "";
    for await (const part of message.text) text += part;
    return text;
  };
  const said = (async () => {
    const texts = [];
    for await (const message of thread.messages) if (texts.push(whole(message)) === 2) break;
    return Promise.all(texts);
  })();
  await thread.run.start({ input: { messages: [{ role: "user", content: "hi" }], words: 5, pause: 0.02 } });
  assert.deepEqual(await said, Array(2).fill("You said hi: w0 w1 w2 w3 w4"));
  await thread.close();
});

test("store and crons", async () => {
  await client.store.putItem(["wired", "js"], "tea", { fact: "tea" });
  assert.deepEqual((await client.store.getItem(["wired", "js"], "tea")).value, { fact: "tea" });
  const found = await client.store.searchItems(["wired", "js"], { filter: { fact: "tea" } });
  assert.equal(found.items.length, 1);
  await client.store.deleteItem(["wired", "js"], "tea");
  assert.equal(await client.store.getItem(["wired", "js"], "tea"), null);
  const cron = await client.crons.create("line", { schedule: "0 5 * * *", input: { log: [] } });
  assert.ok((await client.crons.search({})).some((row) => row.cron_id === cron.cron_id));
  await client.crons.delete(cron.cron_id);
});

after(() => setTimeout(() => process.exit(), 500).unref()); // open connections do not hold up the tests
