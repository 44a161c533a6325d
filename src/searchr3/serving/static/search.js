// The search page. What documents, model and server say is put in as text, never as HTML.

import { request } from "./client.js";

const MODES = ["on", "off", "auto", "compare"];
const NAMES = { on: "After thinking", off: "Without thinking", auto: "Thinking where it pays" };
const KEPT = 20; // searches whose answers are kept, for Back

const at = (id) => document.getElementById(id);
const ask = at("ask"), field = ask.elements, status = at("status"), results = at("results");
const kept = new Map(); // answers by the address of their search
let health = null;
let key = ""; // in memory alone
let running = null; // the AbortController of the search at work

// -- requests

/** Path and body of the request for what is asked, once for each side. */
function requests({ q, think, k, hybrid, paths, types }) {
  return (think === "compare" ? ["off", "on"] : [think]).map((reasoning) => {
    if (health && health.documents == null) {
      return ["v1/embeddings", { model: health.model, input: q, input_type: "query", reasoning, stream: true }];
    }
    const only = { ...(hybrid && { hybrid }), ...(paths.length && { paths }), ...(types.length && { types }) };
    return ["search", { query: q, k, reasoning, stream: true, ...only }];
  });
}

function curl([path, body]) {
  const quoted = JSON.stringify(body).replaceAll("'", "'\\''");
  const bearer = key ? ' -H "Authorization: Bearer $KEY"' : "";
  return `curl -N ${new URL(path, location.href.split("#")[0])}${bearer} -H 'Content-Type: application/json' \\\n  -d '${quoted}'`;
}

// -- what is asked: form and address

const list = (text) => text.split(",").map((one) => one.trim()).filter(Boolean);

function asked() {
  return {
    q: field.q.value.trim(),
    think: field.think.value,
    k: field.k.valueAsNumber,
    hybrid: field.hybrid.checked,
    paths: list(field.paths.value),
    types: list(field.types.value),
  };
}

/** Its address: behind the #, so that no log of a server or proxy has it. */
function address({ q, think, k, hybrid, paths, types }) {
  const said = { q, think, k, hybrid: hybrid ? 1 : "", paths: paths.join(","), types: types.join(",") };
  return `#${new URLSearchParams(Object.entries(said).filter(([, value]) => value))}`;
}

function fill(hash) {
  const said = new URLSearchParams(hash.slice(1));
  field.q.value = said.get("q") || "";
  field.think.value = MODES.includes(said.get("think")) ? said.get("think") : "on";
  field.k.value = parseInt(said.get("k"), 10) || 10;
  field.hybrid.checked = said.has("hybrid");
  for (const name of ["paths", "types"]) field[name].value = said.get(name) || "";
  at("more").open = ["hybrid", "paths", "types"].some((name) => said.has(name));
}

// -- what is shown

const made = (id) => at(id).content.firstElementChild.cloneNode(true);
const count = (n, one, more = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : more}`;
const time = (seconds) => (seconds < 0.995 ? `${Math.max(1, Math.round(1000 * seconds))} ms` : `${seconds.toFixed(1)} s`);

function side(reasoning) {
  const root = made("side");
  const part = (name) => root.querySelector(name);
  part(".name").textContent = NAMES[reasoning];
  root.classList.toggle("thinks", reasoning !== "off");
  root.classList.add("busy");
  part(".thought").textContent = reasoning === "off" ? "The question as it stands." : "";
  results.append(root);
  return { root, part, reasoning };
}

function say({ part }, text) {
  const box = part(".thought");
  const below = box.scrollHeight - box.scrollTop - box.clientHeight < 8;
  box.textContent = (box.textContent + text).trimStart();
  if (below) box.scrollTop = box.scrollHeight;
}

function show(shown, answer) {
  const { root, part, reasoning } = shown;
  const thought = answer.hits ? answer.reasoning : answer.data[0].reasoning;
  root.classList.remove("busy");
  root.classList.toggle("thinks", Boolean(thought));
  if (thought) part(".thought").textContent = thought.text || "(no words)";
  else if (reasoning === "auto") part(".thought").textContent = "No thinking: the direct ranking is sure enough.";
  const facts = [];
  if (thought) facts.push(`${count(thought.tokens, "token")} thought${thought.emitted ? "" : ", cut off"}`);
  facts.push(`${thought ? answer.usage.prompt_tokens : count(answer.usage.prompt_tokens, "token")} read`);
  if (answer.seconds) {
    facts.push(`${time(answer.seconds.embedding)} to ${thought ? "think and embed" : "embed"}`);
    facts.push(`${time(answer.seconds.search)} to search`);
  } else facts.push(`${time(answer.took)} in all`);
  part(".facts").textContent = facts.join(" · ");
  if (answer.hits) {
    part(".hits").replaceChildren(...answer.hits.map(hit));
    if (!answer.hits.length) part(".found").textContent = "Nothing found.";
  } else {
    const vector = answer.data[0].embedding;
    const begin = vector.slice(0, 4).map((one) => one.toFixed(3)).join(", ");
    part(".found").textContent = `A vector of ${count(vector.length, "number")}: ${begin}, …`;
  }
}

function hit(found) {
  const item = made("hit"), { metadata } = found;
  const put = (name, text) => (item.querySelector(name).textContent = text || "");
  item.dataset.id = found.document_id;
  put(".rank", found.rank);
  item.querySelector(".score").append(found.score.toFixed(3));
  const name = metadata.path || found.title || found.document_id;
  const cut = metadata.path ? name.lastIndexOf("/") + 1 : 0;
  put(".folder", name.slice(0, cut));
  put(".file", name.slice(cut));
  if (metadata.page) put(".place", `, page ${metadata.page}`);
  else if (metadata.line) {
    put(".place", `:${metadata.line}${metadata.last_line > metadata.line ? `–${metadata.last_line}` : ""}`);
  }
  put(".heading", metadata.heading);
  mark(item.querySelector(".snippet"), found.snippet, found.marks);
  if (metadata.text && metadata.text !== found.snippet) {
    put(".whole pre", metadata.text);
    item.querySelector(".whole").hidden = false;
  }
  return item;
}

/** `text`, with the parts from start to end in <mark>; both count code points. */
function mark(element, text, marks) {
  const points = Array.from(text);
  let done = 0;
  for (const [start, end] of marks) {
    const word = document.createElement("mark");
    word.textContent = points.slice(start, end).join("");
    element.append(points.slice(done, start).join(""), word);
    done = end;
  }
  element.append(points.slice(done).join(""));
}

/** Say at each hit of two sides where the other side has it. Returns a line that sums it up. */
function compare(sides, answers) {
  if (!answers[0].hits) {
    const [a, b] = answers.map((answer) => answer.data[0].embedding);
    const cosine = a.reduce((sum, one, place) => sum + one * b[place], 0);
    return `The cosine of both vectors is ${cosine.toFixed(3)}; 1 would mean that thinking changes nothing.`;
  }
  const ranks = answers.map((answer) => new Map(answer.hits.map((one) => [one.document_id, one.rank])));
  sides.forEach(({ root }, own) => {
    for (const item of root.querySelectorAll(".hits li")) {
      const here = ranks[own].get(item.dataset.id), there = ranks[1 - own].get(item.dataset.id);
      move(item.querySelector(".move"), here, there, own ? "without thinking" : "after thinking");
    }
  });
  const both = [...ranks[0]].filter(([id]) => ranks[1].has(id));
  const moved = both.filter(([id, rank]) => ranks[1].get(id) !== rank).length;
  const most = Math.max(ranks[0].size, ranks[1].size);
  const where = moved
    ? `, ${moved} at another rank: ▲ ▼ are places above and below the other side`
    : both.length && ", at the same rank";
  return most ? `${both.length} of ${count(most, "hit")} in both rankings${where || ""}.` : "Nothing found.";
}

function move(chip, here, there, other) {
  const by = there - here;
  const [kind, text, told] = !there
    ? ["new", "only here", ""]
    : by > 0
      ? ["up", `▲ ${by}`, `higher by ${by} than ${other} (rank ${there})`]
      : by < 0
        ? ["down", `▼ ${-by}`, `lower by ${-by} than ${other} (rank ${there})`]
        : ["same", "=", `the same rank ${other}`];
  chip.className = `move ${kind}`;
  chip.textContent = text;
  if (told) {
    chip.title = told;
    chip.setAttribute("role", "img");
    chip.setAttribute("aria-label", told);
  }
  chip.hidden = false;
}

/** Show where there is no answer, and why; once where both sides have the same reason. */
function fail(sides, errors) {
  if (errors.some((error) => error?.status === 401)) return door();
  const same = errors.every((error) => error?.message === errors[0]?.message);
  if (same) results.replaceChildren(refusal(errors[0]));
  else errors.forEach((error, number) => error && sides[number].part(".found").replaceChildren(refusal(error)));
  for (const { root } of sides) root.classList.remove("busy");
}

function refusal(error) {
  const told = made("problem"), again = told.querySelector("button");
  told.querySelector("p").textContent = error.message;
  again.hidden = !error.again;
  again.addEventListener("click", () => ask.requestSubmit());
  return told;
}

/** Ask for the key; the search goes on once it is given. */
function door() {
  at("door").hidden = false;
  at("refused").textContent = key && "The one that you gave was refused; try another.";
  results.replaceChildren();
  at("key").value = "";
  at("key").focus();
}

/** While a search is at work, Stop stands in the place of Search; the focus stays where it can be used. */
function busy(is) {
  const [shown, hidden] = is ? [at("stop"), at("go")] : [at("go"), at("stop")];
  shown.hidden = false;
  if (document.activeElement === hidden) (is ? shown : field.q).focus();
  hidden.hidden = true;
  results.setAttribute("aria-busy", is);
}

// -- a search

async function start() {
  const wanted = asked(), own = new AbortController(), place = address(wanted);
  stop();
  running = own;
  if (!health) await greet();
  if (running !== own) return;
  at("door").hidden = true;
  at("intro").hidden = true;
  document.title = `${wanted.q} · searchr3`;
  const sent = requests(wanted);
  at("request").hidden = false;
  at("request").querySelector("pre").textContent = sent.map(curl).join("\n\n");
  results.classList.toggle("two", sent.length > 1);
  results.replaceChildren();
  const sides = sent.map(([, body]) => side(body.reasoning));
  const back = kept.get(place);
  status.textContent = wanted.think === "off" ? "Searching…" : "Thinking…";
  busy(!back);
  const found = await Promise.allSettled(
    sent.map(async ([path, body], number) => {
      const begun = performance.now();
      const answer =
        back?.[number] ||
        (await request(path, body, key, own.signal, (name, data) => name === "reasoning" && say(sides[number], data.text)));
      answer.took ??= (performance.now() - begun) / 1000;
      show(sides[number], answer);
      return answer;
    }),
  );
  if (running !== own) return;
  running = null;
  busy(false);
  const errors = found.map((one) => one.reason);
  if (own.signal.aborted) {
    status.textContent = "Stopped.";
    sides.forEach(({ root }) => root.classList.remove("busy"));
    return;
  }
  if (errors.some(Boolean)) {
    status.textContent = "";
    fail(sides, errors);
    return;
  }
  const answers = found.map((one) => one.value);
  kept.delete(place);
  kept.set(place, answers);
  if (kept.size > KEPT) kept.delete(kept.keys().next().value);
  if (answers.length > 1) status.textContent = compare(sides, answers);
  else status.textContent = answers[0].hits ? `${count(answers[0].hits.length, "hit")}.` : "Done.";
}

function stop() {
  running?.abort();
}

/** What the address says: a search, or none. */
function load() {
  fill(location.hash);
  if (field.q.value.trim()) return start();
  stop();
  running = null;
  busy(false);
  at("door").hidden = true;
  results.replaceChildren();
  status.textContent = "";
  document.title = "searchr3";
  at("request").hidden = true;
  at("intro").hidden = health?.documents == null;
}

async function greet() {
  try {
    health = await (await fetch("health")).json();
  } catch {
    at("server").textContent = "The server does not answer. Is it still running?";
    return;
  }
  const { model, documents, filters, auto, trouble } = health;
  const unread = filters && documents == null; // a store that cannot be read now
  const held = documents == null ? "no documents" : count(documents, filters ? "passage" : "document");
  at("server").textContent = [model, !unread && held, trouble].filter(Boolean).join(" · ");
  at("nothing").hidden = unread || documents != null;
  at("hits").hidden = !unread && documents == null;
  at("more").hidden = !filters;
  at("auto").hidden = !auto;
  if (unread) health = null; // so it is asked for anew
}

ask.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!field.q.value.trim()) return field.q.focus();
  const place = address(asked());
  kept.delete(place); // asked anew
  if (place !== location.hash) history.pushState(null, "", place);
  start();
});
at("door").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value.trim();
  ask.requestSubmit();
});
at("stop").addEventListener("click", stop);
addEventListener("popstate", load);
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && running) stop();
  const typing = event.target.matches("input:not([type=radio], [type=checkbox])");
  if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
    event.preventDefault();
    field.q.select();
  }
});
// the same passage in the other ranking, while one is pointed at
for (const kind of ["pointerover", "focusin"]) {
  addEventListener(kind, ({ target }) => {
    const id = target.closest?.(".two .hits li")?.dataset.id;
    for (const item of results.querySelectorAll(".two .hits li")) item.classList.toggle("twin", item.dataset.id === id);
  });
}

greet().then(load);
