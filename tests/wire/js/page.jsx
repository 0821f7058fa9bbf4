// A chat page on useStream, as an application has it. The address says how it speaks:
// ?api=<server>&assistant=<name>&protocol=legacy|sse|websocket, and keeps the thread's id. `hold` goes to the graph.

import { useStream as useEventStream } from "@langchain/react";
import { useStream as useLegacyStream } from "@langchain/langgraph-sdk/react";
import { useState } from "react";
import { createRoot } from "react-dom/client";

const address = new URL(location.href);
const param = (name) => address.searchParams.get(name);

function keepThread(id) {
  address.searchParams.set("thread", id);
  history.replaceState(null, "", address);
}

function options(thread) {
  return { apiUrl: param("api"), apiKey: null, assistantId: param("assistant"), threadId: thread };
}

function Legacy() {
  const [thread, setThread] = useState(param("thread"));
  const stream = useLegacyStream({
    ...options(thread),
    reconnectOnMount: true,
    fetchStateHistory: true,
    onThreadId: (id) => (keepThread(id), setThread(id)),
  });
  const answer = (resume) => stream.submit(undefined, { command: { resume } });
  return <Chat stream={stream} answer={answer} typeOf={(message) => message.type} />;
}

function Events() {
  const [thread, setThread] = useState(param("thread"));
  const stream = useEventStream({
    ...options(thread),
    transport: param("protocol"),
    onThreadId: (id) => (keepThread(id), setThread(id)),
  });
  const answer = (value) => stream.respond(value, { interruptId: stream.interrupt.id });
  return <Chat stream={stream} answer={answer} typeOf={(message) => message.getType()} />;
}

const textOf = ({ content }) => (typeof content === "string" ? content : content.map((part) => part.text ?? "").join(""));

function Chat({ stream, answer, typeOf }) {
  const said = { messages: [{ type: "human", content: "hello" }], words: 30, pause: 0.04, hold: param("hold") };
  return (
    <main>
      <ul>
        {stream.messages.map((message, index) => (
          <li key={message.id ?? index} className={typeOf(message)}>
            {textOf(message)}
          </li>
        ))}
      </ul>
      <button id="send" onClick={() => void stream.submit(said)}>
        Send
      </button>
      {stream.interrupt && (
        <button id="approve" onClick={() => void answer({ decisions: [{ type: "approve" }] })}>
          {stream.interrupt.value.action_requests[0].description}
        </button>
      )}
      <p id="status">{stream.isLoading ? "busy" : "idle"}</p>
      <p id="error">{stream.error ? String(stream.error) : ""}</p>
    </main>
  );
}

createRoot(document.body.appendChild(document.createElement("div"))).render(
  param("protocol") === "legacy" ? <Legacy /> : <Events />,
);
