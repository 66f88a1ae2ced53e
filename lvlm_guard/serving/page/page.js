"use strict";

const $ = (id) => document.getElementById(id);
const state = { picture: null, models: null, controller: null };

function say(text) { $("status").textContent = text; }

function complain(text) {
  $("problem").textContent = text;
  $("problem").hidden = !text;
}

function headers() {
  const key = $("key").value.trim();
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function readError(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with status ${response.status}.`;
  }
}

async function loadModels() {
  const response = await fetch("/v1/models", { headers: headers() });
  if (response.status === 401) {
    $("key-field").hidden = false;
    say("This server asks for an API key.");
    return false;
  }
  if (!response.ok) throw new Error(await readError(response));
  state.models = (await response.json()).data[0];
  const { stacks, default: first } = state.models.guard;
  $("stack").replaceChildren(...Object.entries(stacks)
    .filter(([name]) => name !== "plain")
    .map(([name, strategies]) => {
      const joined = strategies.join("+");
      return new Option(joined === name ? name : `${name} (${joined})`, name, name === first, name === first);
    }));
  say("");
  return true;
}

function choosePicture(file) {
  if (!file || !file.type.startsWith("image/")) return;
  const reader = new FileReader();
  reader.onload = () => {
    state.picture = reader.result;
    const preview = $("preview");
    preview.onload = () => preview.classList.toggle("small", preview.naturalWidth < 200);
    preview.src = state.picture;
    preview.hidden = false;
    complain("");
  };
  reader.onerror = () => complain("The picture cannot be read.");
  reader.readAsDataURL(file);
}

function buildBody(stack) {
  const content = [{ type: "text", text: $("question").value }];
  if (state.picture) content.unshift({ type: "image_url", image_url: { url: state.picture } });
  return {
    model: state.models.id, messages: [{ role: "user", content }], max_tokens: Number($("tokens").value) || 64,
    temperature: 0, stream: true, stream_options: { include_usage: true }, guard: { stack },
  };
}

// Server-sent events end with an empty line; a piece of the network may hold half an event, or several.
async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const events = (rest + value).split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const data = event.replace(/^data: /, "");
      if (data !== "[DONE]") yield JSON.parse(data);
    }
  }
}

async function answer(stack, place, signal) {
  const started = performance.now();
  const response = await fetch("/v1/chat/completions", {
    method: "POST", headers: headers(), body: JSON.stringify(buildBody(stack)), signal,
  });
  if (!response.ok) throw new Error(await readError(response));
  const target = $(place);
  let text = "";
  for await (const event of readEvents(response)) {
    if (event.error) throw new Error(event.error.message);
    text += event.choices[0]?.delta.content ?? "";
    target.textContent = text;
    if (event.usage) {
      const seconds = ((performance.now() - started) / 1000).toFixed(1);
      $(`${place}-note`).textContent = `${event.usage.completion_tokens} tokens, ${seconds} s`;
    }
  }
  return text;
}

// The longest common subsequence of words: what is not in it stands in one of the answers only.
function compare(before, after) {
  const [a, b] = [before, after].map((text) => text.match(/\S+\s*/g) ?? []);
  const words = (list) => list.map((word) => word.trim());
  const [x, y] = [words(a), words(b)];
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1));
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      lengths[i][j] = x[i] === y[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const common = [new Set(), new Set()];
  for (let i = 0, j = 0; i < a.length && j < b.length;) {
    if (x[i] === y[j]) { common[0].add(i++); common[1].add(j++); }
    else if (lengths[i + 1][j] >= lengths[i][j + 1]) i++;
    else j++;
  }
  return [a, b].map((list, side) => list.map((word, index) => ({ word, common: common[side].has(index) })));
}

function mark(place, words, tag) {
  const nodes = [];
  for (let index = 0; index < words.length;) {
    const { common } = words[index];
    let text = "";
    while (index < words.length && words[index].common === common) text += words[index++].word;
    if (common) { nodes.push(text); continue; }
    const node = document.createElement(tag);
    node.textContent = text.trimEnd();
    nodes.push(node, text.slice(text.trimEnd().length));
  }
  $(place).replaceChildren(...nodes);
}

function show(plain, guarded) {
  const [before, after] = compare(plain, guarded);
  mark("plain", before, "del");
  mark("guarded", after, "ins");
  const changed = [...before, ...after].some((word) => !word.common);
  $("legend").hidden = !changed;
  say(changed ? "Done. The answers differ." : "Done. Both answers are the same.");
}

function setBusy(busy) {
  $("ask").disabled = busy;
  $("stop").disabled = !busy;
  $("answers").setAttribute("aria-busy", String(busy));
}

async function ask() {
  complain("");
  if (!state.models && !(await loadModels())) { $("key").focus(); return; }
  state.controller = new AbortController();
  const { signal } = state.controller;
  const stack = $("stack").value;
  $("guarded-title").textContent = `Guarded: ${stack}`;
  for (const place of ["plain", "guarded", "plain-note", "guarded-note"]) $(place).textContent = "";
  $("answers").hidden = false;
  $("legend").hidden = true;
  setBusy(true);
  try {
    say("The model answers by itself.");
    const plain = await answer("plain", "plain", signal);
    say("The model answers guarded.");
    show(plain, await answer(stack, "guarded", signal));
  } finally {
    setBusy(false);
  }
}

function run(work) {
  work().catch((error) => {
    say("");
    $("answers").hidden = !$("plain").textContent;
    if (error.name === "AbortError") say("Stopped.");
    else complain(error.message || String(error));
  });
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); run(ask); });
$("stop").addEventListener("click", () => state.controller?.abort());
$("file").addEventListener("change", (event) => choosePicture(event.target.files[0]));
$("key").addEventListener("change", () => run(loadModels));
$("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
document.addEventListener("paste", (event) => choosePicture(event.clipboardData.files[0]));
for (const kind of ["dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("form").classList.toggle("dragging", kind === "dragover");
    if (kind === "drop") choosePicture(event.dataTransfer.files[0]);
  });
}
run(loadModels);
