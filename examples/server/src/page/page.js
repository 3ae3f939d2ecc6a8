// The page: keeps the conversation, sends it whole, and shows the answer while it is written.
"use strict";

const element = (id) => document.getElementById(id);
const conversation = [];
let running = null;

function headers() {
  const key = element("key").value.trim();
  const all = { "Content-Type": "application/json" };
  if (key) all.Authorization = "Bearer " + key;
  return all;
}

function bubble(role) {
  const div = document.createElement("div");
  div.className = "message " + role;
  element("messages").append(div);
  return div;
}

// Scrolls along only if the reader is at the end.
function follow(change) {
  const box = element("messages");
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  change();
  if (atEnd) box.scrollTop = box.scrollHeight;
}

function number(id) {
  const text = element(id).value.trim();
  return text === "" ? undefined : Number(text);
}

function body() {
  const system = element("system").value.trim();
  const messages = system ? [{ role: "system", content: system }, ...conversation] : conversation;
  return JSON.stringify({
    messages, stream: true, stream_options: { include_usage: true },
    temperature: number("temperature"), top_p: number("top_p"),
    max_tokens: number("max_tokens"), seed: number("seed"),
    chat_template_kwargs: { enable_thinking: element("thinking").checked },
  });
}

// The data of server-sent events, one after the other.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    held += value;
    let end;
    while ((end = held.indexOf("\n\n")) >= 0) {
      const block = held.slice(0, end);
      held = held.slice(end + 2);
      for (const line of block.split("\n")) {
        if (line.startsWith("data: ")) yield line.slice(6);
      }
    }
  }
}

function show(answer, chunk, figures) {
  if (chunk.error) throw new Error(chunk.error.message);
  if (chunk.usage) figures.usage = chunk.usage;
  if (chunk.timings) figures.timings = chunk.timings;
  const delta = chunk.choices?.[0]?.delta;
  if (!delta) return;
  const grow = (part, className, text) => {
    if (!part.node) {
      part.node = document.createElement("div");
      part.node.className = className;
      if (className === "thought") answer.div.prepend(part.node); else answer.div.append(part.node);
    }
    part.text += text;
    part.node.textContent = part.text;
  };
  follow(() => {
    if (delta.reasoning_content) grow(answer.thought, "thought", delta.reasoning_content);
    if (delta.content) grow(answer.content, "content", delta.content);
  });
  figures.chunks += 1;
}

function describe(figures, stopped) {
  const { usage, timings, chunks, began } = figures;
  const parts = [];
  if (usage) {
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(`prompt ${usage.prompt_tokens} tokens, ${cached} of them cached`);
    parts.push(`answer ${usage.completion_tokens} tokens`);
  } else {
    parts.push(`${chunks} pieces in ${((performance.now() - began) / 1000).toFixed(1)} s`);
  }
  if (timings) {
    parts.push(`first token after ${timings.first_token_ms?.toFixed(0) ?? "?"} ms`);
    parts.push(`prompt ${timings.prompt_per_second.toFixed(1)} tokens/s`);
    parts.push(`answer ${timings.predicted_per_second.toFixed(1)} tokens/s`);
  }
  if (stopped) parts.push("stopped");
  element("stats").textContent = parts.join(" · ");
}

function setRunning(controller) {
  running = controller;
  element("send").disabled = controller !== null;
  element("stop").disabled = controller === null;
}

async function send() {
  const text = element("input").value.trim();
  if (!text || running) return;
  element("input").value = "";
  conversation.push({ role: "user", content: text });
  follow(() => { bubble("user").textContent = text; });
  const answer = { div: bubble("assistant"), thought: { text: "" }, content: { text: "" } };
  answer.div.classList.add("running");
  const figures = { chunks: 0, began: performance.now() };
  const controller = new AbortController();
  setRunning(controller);
  const ticking = setInterval(() => describe(figures, false), 250);
  let stopped = false;
  try {
    const request = { method: "POST", headers: headers(), body: body(), signal: controller.signal };
    const response = await fetch("v1/chat/completions", request);
    if (!response.ok) throw new Error((await response.json()).error?.message ?? response.statusText);
    for await (const data of events(response)) {
      if (data !== "[DONE]") show(answer, JSON.parse(data), figures);
    }
  } catch (error) {
    stopped = error.name === "AbortError";
    if (!stopped) {
      answer.div.classList.add("error");
      answer.div.append(String(error.message));
    }
  }
  clearInterval(ticking);
  answer.div.classList.remove("running");
  conversation.push({ role: "assistant", content: answer.content.text });
  setRunning(null);
  describe(figures, stopped);
  element("input").focus();
  // A moment later a stopped session is idle again.
  setTimeout(refresh, 300);
}

async function refresh() {
  try {
    const health = await (await fetch("health")).json();
    element("model").textContent = `${health.model}, ${health.n_ctx} tokens of context`;
    element("load").textContent = `${health.running} of ${health.parallel} busy, ${health.waiting} waiting`;
  } catch {
    element("model").textContent = "the server does not answer";
  }
}

element("form").addEventListener("submit", (event) => { event.preventDefault(); send(); });
element("stop").addEventListener("click", () => running?.abort());
element("clear").addEventListener("click", () => {
  running?.abort();
  conversation.length = 0;
  element("messages").replaceChildren();
  element("stats").textContent = "no answer yet";
});
element("input").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
});
refresh();
setInterval(refresh, 5000);
