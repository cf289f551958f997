// The conversation: one answer at a time, streamed, with what it cost.

import { call, events } from "/dashboard/api.js";
import { seconds, short } from "/dashboard/format.js";

const byId = (id) => document.getElementById(id);
let turns = [];
let running = null; // the AbortController of the answer under way

function bubble(role, text) {
  byId("chat-empty").hidden = true;
  const node = document.createElement("article");
  node.className = `turn ${role}`;
  if (role === "user") {
    node.textContent = text;
  } else {
    const body = document.createElement("div");
    body.className = "text";
    node.append(body);
  }
  byId("turns").append(node);
  return node;
}

/** Text with fenced code as <pre>; never HTML, so nothing a model writes can become markup. */
function render(body, text) {
  const parts = text.split("```");
  body.replaceChildren(
    ...parts.map((part, index) => {
      if (index % 2 === 0) return document.createTextNode(part);
      const block = document.createElement("pre");
      block.textContent = part.replace(/^[\w+-]*\n/, "");
      return block;
    }),
  );
}

function stickToEnd(change) {
  const list = byId("turns");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
  change();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

function meta(node, facts) {
  const line = document.createElement("div");
  line.className = "meta";
  for (const [name, value] of facts) {
    const entry = document.createElement("span");
    const figure = document.createElement("b");
    figure.textContent = value;
    entry.append(figure, ` ${name}`);
    line.append(entry);
  }
  node.append(line);
}

function body() {
  const system = byId("system").value.trim();
  const asked = {
    messages: [...(system ? [{ role: "system", content: system }] : []), ...turns],
    stream: true,
    stream_options: { include_usage: true },
  };
  if (byId("temperature").value !== "") asked.temperature = Number(byId("temperature").value);
  if (byId("limit").value !== "") asked.max_completion_tokens = Number(byId("limit").value);
  return JSON.stringify(asked);
}

async function answer() {
  const node = bubble("assistant", "");
  node.classList.add("busy");
  const place = node.querySelector(".text");
  let [text, thought, usage, reason, first, last] = ["", "", null, "", null, null];
  let thoughts = null;
  let [drawn, pieces] = [true, 0];
  running = new AbortController();
  showRunning(true);
  const began = performance.now();
  const draw = () => {
    drawn = true;
    stickToEnd(() => {
      if (thought && !thoughts) {
        thoughts = document.createElement("details");
        thoughts.append(document.createElement("summary"), document.createElement("div"));
        thoughts.firstChild.textContent = "Thoughts";
        node.prepend(thoughts);
      }
      if (thoughts) thoughts.lastChild.textContent = thought;
      render(place, text);
    });
  };
  try {
    const reply = await call("/v1/chat/completions", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: body(),
      signal: running.signal,
    });
    for await (const event of events(reply)) {
      if (event.error) throw new Error(event.error.message);
      usage = event.usage ?? usage;
      const choice = event.choices[0];
      if (!choice) continue;
      reason = choice.finish_reason ?? reason;
      first ??= performance.now();
      if (choice.delta.content || choice.delta.reasoning_content) {
        last = performance.now();
        pieces += 1;
        text += choice.delta.content ?? "";
        thought += choice.delta.reasoning_content ?? "";
        if (drawn) {
          drawn = false;
          requestAnimationFrame(draw);
        }
      }
    }
  } catch (error) {
    if (error.name === "AbortError") {
      reason = "stopped";
    } else {
      node.classList.add("failed");
      text = text ? `${text}\n\n${error.message}` : error.message;
      reason = "failed";
    }
  }
  running = null;
  draw();
  node.classList.remove("busy");
  showRunning(false);
  if (first !== null) stickToEnd(() => meta(node, facts({ began, first, last, usage, reason, pieces })));
  if (reason === "failed" && !usage) turns.pop(); // the question may be asked again
  else turns.push({ role: "assistant", content: text });
}

function facts({ began, first, last, usage, reason, pieces }) {
  const tokens = usage?.completion_tokens ?? pieces; // a stopped answer has no usage: one piece is about one token
  const spent = last === null ? 0 : (last - first) / 1000;
  const made = [[usage ? "tokens" : "pieces", short(tokens)]];
  if (tokens > 1 && spent > 0) made.push(["tokens/s", short((tokens - 1) / spent)]);
  made.push(["to first token", seconds((first - began) / 1000)]);
  if (usage) made.push([`of ${usage.prompt_tokens} prompt tokens cached`, String(usage.prompt_tokens_details.cached_tokens)]);
  if (reason === "length") made.push(["cut at the limit", ""]);
  if (reason === "stopped") made.push(["", "stopped"]);
  return made;
}

function showRunning(is) {
  byId("send").hidden = is;
  byId("stop").hidden = !is;
  byId("clear").disabled = is || !turns.length;
}

function ask(text) {
  if (running || !text.trim()) return;
  turns.push({ role: "user", content: text });
  stickToEnd(() => bubble("user", text));
  byId("turns").scrollTop = byId("turns").scrollHeight;
  answer().then(() => byId("prompt").focus());
}

export function converse() {
  const prompt = byId("prompt");
  const grow = () => {
    prompt.style.height = "auto";
    prompt.style.height = `${Math.min(prompt.scrollHeight + 2, 160)}px`;
  };
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(prompt.value);
    if (running) prompt.value = "";
    grow();
  });
  prompt.addEventListener("input", grow);
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      byId("composer").requestSubmit();
    }
  });
  byId("stop").addEventListener("click", () => running?.abort());
  byId("clear").addEventListener("click", () => {
    turns = [];
    for (const node of byId("turns").querySelectorAll(".turn")) node.remove();
    byId("chat-empty").hidden = false;
    showRunning(false);
  });
  for (const idea of document.querySelectorAll(".idea")) {
    idea.addEventListener("click", () => ask(idea.textContent));
  }
}
