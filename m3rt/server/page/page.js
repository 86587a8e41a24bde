// The page: asks the server for the scores of passages, and shows why they are what they are.

import { EXAMPLES } from "./examples.js";
import { heatMap } from "./heat.js";
import { HEADS, heaviest, number, parts, passagesOf, plural, range, shared, sum } from "./scores.js";
import { made, word, write } from "./tokens.js";

const $ = (id) => document.getElementById(id);
const MOST_PASSAGES = 50; // an explained answer has a number for each pair of tokens
const MOST_SHARED = 10; // rows of a table; the products of the rest are summed
const KEY = "m3rt-key";

let info = null; // what the server is
let usual = { dense: 0.4, sparse: 0.2, colbert: 0.4 }; // weights, until the server has told its own
let weights = { ...usual }; // those that count: a slider may have no place for the server's
let running = null; // the request that is under way
let cards = []; // those that are shown, in the order of the passages

// -- the server ----------------------------------------------------------------------------------

/** An answer that is none. */
class Refused extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

/** Call the server; paths are relative, as a proxy may have put it under a prefix. */
async function call(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached.");
  }
  let content = null;
  try {
    content = await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error; // or it is no JSON, as from a proxy
  }
  if (response.ok && content) return content;
  const after = response.headers.get("retry-after");
  throw new Refused(sentence(response.status, content?.error?.message, after, key), response.status);
}

/** Say what went wrong, and what can be done. */
function sentence(status, message, after, key) {
  const seconds = Number.parseInt(after, 10);
  const again = seconds > 0 ? ` Try again in ${plural(seconds, "second")}.` : " Try again later.";
  const told = message ? `: ${message.replace(/\.$/, "")}.` : ".";
  if (status === 401) return key ? "The server does not take this key." : "The server asks for an API key.";
  if (status === 429) return `The server has too much to do.${again}`;
  if (status === 503) return `The server is not ready${told}${again}`;
  if (status === 408 || status === 504) return `The server did not get to it in time${told}`;
  if (status >= 400 && status < 500) return `The server refused the request${told}`;
  return `The server failed (${status})${told}`;
}

function problem(text, field = null) {
  $("problem").textContent = text;
  for (const id of ["query", "passages", "key"]) {
    $(id).toggleAttribute("aria-invalid", id === field);
  }
  if (field) $(field).focus();
}

function failed(error) {
  if (error.name === "AbortError") return; // another request took its place
  if (error.status === 401) $("key-field").hidden = false;
  problem(error instanceof Refused ? error.message : `This page failed: ${error.message}`,
    error.status === 401 ? "key" : null);
}

// -- the form ------------------------------------------------------------------------------------

const lines = () => $("passages").value.split("\n").map((line) => line.trim()).filter(Boolean);

const request = () => ({ query: $("query").value.trim(), passages: lines(), explain: true });

async function submit() {
  const body = request();
  if ($("key").value) sessionStorage.setItem(KEY, $("key").value);
  if (!body.query) return problem("Write a query.", "query");
  if (!body.passages.length) return problem("Write at least one passage.", "passages");
  if (body.passages.length > MOST_PASSAGES) {
    const text = `${body.passages.length} passages are too many: this page takes ${MOST_PASSAGES}.`;
    return problem(text, "passages");
  }
  running?.abort();
  const mine = (running = new AbortController());
  $("go").setAttribute("aria-busy", "true");
  problem("");
  try {
    if (!info) await introduce();
    const answer = await call("v1/m3/score", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(body),
      signal: mine.signal,
    });
    $("key-field").hidden = true;
    show(answer);
  } catch (error) {
    failed(error);
  } finally {
    if (running === mine) $("go").removeAttribute("aria-busy");
  }
}

function edited() {
  // the lines again, behind the field: they give it its height, and each passage its number
  $("lines").replaceChildren(...$("passages").value.split("\n").map((line) => {
    const copy = made("div", line.trim() ? "line" : "", line || "\u200b");
    copy.dir = "auto";
    return copy;
  }));
  const count = lines().length;
  $("count").textContent = count ? `${count} of ${MOST_PASSAGES}` : "";
  $("count").classList.toggle("over", count > MOST_PASSAGES);
  const quoted = JSON.stringify(request()).replaceAll("'", "'\\''");
  const key = sessionStorage.getItem(KEY) ? " \\\n  -H \"authorization: Bearer $KEY\"" : "";
  $("curl").textContent = `curl ${new URL("v1/m3/score", document.baseURI)}${key} \\\n  `
    + `-H 'content-type: application/json' \\\n  -d '${quoted}'`;
}

function fill(example) {
  $("query").value = example.query;
  $("passages").value = example.passages.join("\n");
  edited();
}

// -- the results ---------------------------------------------------------------------------------

function show(answer) {
  const { query } = answer.explain;
  const passages = passagesOf(answer);
  const heaviestWeight = range([query, ...passages].map((text) => text.weights ?? []))[1];
  const [low, high] = range(passages.flatMap((passage) => passage.alignment ?? []));
  const bounds = [Math.max(low, 0), Math.max(high, 0)]; // less than 0 is no match, like 0
  cards = passages.map((passage) => card(passage, query, heaviestWeight, bounds));
  write($("query-tokens"), query, heaviestWeight);
  facts($("query-facts"), query);
  for (const head of HEADS) {
    $(`w-${head}`).closest("label").hidden = passages[0].scores[head] === null;
  }
  legend(heaviestWeight);
  $("cards").replaceChildren();
  $("intro").hidden = true;
  $("found").hidden = false;
  weigh();
  const { total, tokenise, queue, engine } = answer.timings;
  $("status").replaceChildren(
    made("strong", "", plural(passages.length, "passage")),
    ` and the query, ${plural(answer.usage.total_tokens, "token")}, in `,
    made("strong", "", `${number(total, 1)} ms`),
    made("span", "times", ` tokenise ${number(tokenise, 1)}, queue ${number(queue, 1)}, `
      + `engine ${number(engine, 1)}`),
  );
  // on a phone the results are below the form
  if ($("results").getBoundingClientRect().top > innerHeight / 2) $("results").scrollIntoView();
}

function card(passage, query, heaviestWeight, bounds) {
  const node = $("card").content.firstElementChild.cloneNode(true);
  const find = (selector) => node.querySelector(selector);
  const common = shared(query, passage);
  write(find(".tokens"), passage, heaviestWeight, new Set(common.map(({ token }) => token)));
  for (const head of HEADS) {
    const score = passage.scores[head];
    find(`.scores .${head}`).hidden = score === null;
    if (score !== null) find(`.scores .${head} dd`).textContent = number(score);
  }
  facts(find(".facts"), passage, `passage ${passage.number}, `);
  const [button, panel] = [find(".open"), find(".why")];
  button.setAttribute("aria-controls", (panel.id = `why-${passage.number}`));
  button.setAttribute("aria-label", `Explain passage ${passage.number}`);
  button.addEventListener("click", () => {
    const open = panel.hidden;
    if (!panel.childElementCount) { // made when first asked for: it may have thousands of cells
      const direction = getComputedStyle(find(".tokens")).direction;
      if (passage.weights) panel.append(words(passage, common));
      if (passage.alignment) panel.append(heatMap(query, passage, bounds, direction));
    }
    panel.hidden = !open;
    find(".card").classList.toggle("opened", open);
    button.setAttribute("aria-expanded", open);
  });
  return { node, passage };
}

function facts(element, text, before = "") {
  const read = plural(text.tokens.length, "token");
  const cut = made("strong", "cut", `cut: only its first ${read} were read`);
  element.replaceChildren(before, text.truncated ? cut : read);
}

/** What the sparse score is made of, as a table. */
function words(passage, common) {
  const told = made("figcaption", "", made("strong", "", "Shared tokens. "), common.length
    ? `The products of their weights add up to the sparse score, ${number(passage.scores.sparse)}.`
    : "None, so the sparse score is 0.");
  const figure = made("figure", "", told);
  if (common.length) {
    const titles = ["Token", "Query", "Passage", "Product"].map((title) => {
      const cell = made("th", "", title);
      cell.scope = "col";
      return cell;
    });
    const rows = common.slice(0, MOST_SHARED).map(({ token, left, right, product }) => {
      const name = made("th", "", made("bdi", "", word(token)));
      name.scope = "row";
      return made("tr", "", name, ...[left, right, product].map((x) => made("td", "", number(x))));
    });
    figure.append(made("table", "words",
      made("thead", "", made("tr", "", ...titles)), made("tbody", "", ...rows)));
  }
  const rest = common.slice(MOST_SHARED);
  const more = sum(rest.map(({ product }) => product));
  const most = made("p", "heaviest", rest.length ? `${rest.length} more: ${number(more)}. ` : "", "Heaviest: ");
  heaviest(passage, 8).forEach(([token, weight], i) => {
    most.append(i ? ", " : "", made("bdi", "", word(token)), ` ${number(weight, 2)}`);
  });
  figure.append(most);
  return figure;
}

// -- the weights ---------------------------------------------------------------------------------

function weigh() {
  for (const head of HEADS) {
    const slider = $(`w-${head}`);
    document.querySelector(`output[for=w-${head}]`).textContent = number(weights[head], 2);
    slider.style.setProperty("--at", `${(slider.value / slider.max) * 100}%`);
  }
  $("reset").disabled = HEADS.every((head) => weights[head] === usual[head]);
  for (const item of cards) {
    const added = parts(item.passage.scores, weights);
    item.sum = sum(added);
    item.node.querySelector(".combined").textContent = number(item.sum);
    for (const head of HEADS) {
      const part = item.node.querySelector(`.bar .${head}`);
      part.style.setProperty("--part", Math.max(0, added[head] ?? 0));
    }
  }
  // sort is stable: equal sums keep the passages' order
  place([...cards].sort((a, b) => b.sum - a.sum).map(({ node }) => node));
}

/** Put the cards in this order; those that move glide there. */
function place(nodes) {
  const list = $("cards");
  if (nodes.every((node, i) => node === list.children[i])) return;
  const before = new Map(nodes.map((node) => [node, node.getBoundingClientRect().top]));
  const moves = list.childElementCount && matchMedia("(prefers-reduced-motion: no-preference)").matches;
  list.append(...nodes);
  for (const node of moves ? nodes : []) {
    const shift = before.get(node) - node.getBoundingClientRect().top;
    const from = { transform: `translateY(${shift}px)` };
    if (shift) node.animate([from, { transform: "none" }], { duration: 220, easing: "ease-out" });
  }
}

function legend(most) {
  const steps = [0, 1, 2, 3, 4].map((i) => {
    const step = made("i", "");
    step.style.setProperty("--w", i / 4);
    return step;
  });
  $("scale").replaceChildren("0", ...steps, number(Math.max(most, 0), 2));
}

function reset() {
  weights = { ...usual };
  for (const head of HEADS) $(`w-${head}`).value = weights[head];
  weigh();
}

// -- the start -----------------------------------------------------------------------------------

async function introduce() {
  info = await call("v1/m3/info");
  usual = info.weights;
  $("info-model").textContent = info.model;
  $("info-engine").textContent = info.engine;
  $("info-length").textContent = plural(info.max_length, "token");
  $("info").hidden = false;
  document.title = `${info.model} · m3rt playground`;
  const most = Math.max(1, ...Object.values(usual));
  for (const head of HEADS) Object.assign($(`w-${head}`), { max: most, step: most / 20 });
  reset();
}

$("examples").append(...EXAMPLES.map((example) => {
  const button = made("button", "chip", example.name);
  button.type = "button";
  button.lang = example.lang;
  button.addEventListener("click", () => {
    fill(example);
    submit();
  });
  return button;
}));
$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    submit();
  }
});
$("ask").addEventListener("input", edited);
$("weights").addEventListener("input", ({ target }) => {
  weights[target.id.slice(2)] = Number(target.value);
  weigh();
});
$("reset").addEventListener("click", reset);
reset();
fill(EXAMPLES[0]);
introduce().catch(failed);
