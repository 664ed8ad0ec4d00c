// The view "Write": a tree of texts. A branch continues from an alternative; its prompt is the text up to there.

import { $, fail, guarded, post, stream } from "./api.js";
import { make, percent, probabilityColor, quoted, Tokens } from "./tokens.js";

const ALTERNATIVES = 8;
const STOPS = ["stop", "compare-stop", "hold-stop", "way-stop"];
// The most probable next tokens that are named.
const NEXT = 3;
// Tokens that a frame adds, and that may wait for their frame.
const PER_FRAME = 200, AHEAD = 1000;
// Name, label, largest value and step of the slider, its first value, and the value with which nothing changes.
const SETTINGS = [
  ["temperature", "Temperature", 2, 0.05, 0.8, 1],
  ["top_k", "Top-k (0: all)", 100, 1, 0, 0],
  ["top_p", "Top-p", 1, 0.01, 1, 1],
  ["min_p", "Min-p", 1, 0.01, 0, 0],
  ["repetition_penalty", "Repetition penalty", 2, 0.05, 1, 1],
  ["presence_penalty", "Presence penalty", 2, 0.05, 0, 0],
  ["frequency_penalty", "Frequency penalty", 2, 0.05, 0, 0],
  ["max_tokens", "Length in tokens", 1000, 10, 300, null],
];

const output = new Tokens($("output"), showAlternatives);
let roots = [], shown = null, history = [], running = null;

export function setUp() {
  for (const [name, label, max, step, value] of SETTINGS) {
    const number = make("input", { id: name, type: "number", step: "any", value });
    const slider = make("input", { type: "range", min: 0, max, step, value, ariaLabel: `${label}, slider` });
    slider.addEventListener("input", () => { number.value = slider.value; });
    number.addEventListener("input", () => { slider.value = number.value; });
    $("sliders").append(make("label", { htmlFor: name, textContent: label }), make("div", { className: "pair" }, slider, number));
  }
  if (matchMedia("(max-width: 50rem)").matches) $("settings").open = false;
  $("write-form").addEventListener("submit", guarded(() => generate(null, [], $("prompt").value)));
  $("continue").addEventListener("click", guarded(() => generate(shown, tokensOf(shown), "")));
  for (const name of STOPS) $(name).addEventListener("click", () => running?.abort());
  $("undo").addEventListener("click", () => { running?.abort(); show(history.pop(), false); });
  $("alternatives").addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    output.focus(output.pinned);
    output.unpick();
  });
  $("receipt-kind").addEventListener("change", showReceipt);
  $("copy").addEventListener("click", copy);
  $("compare-form").addEventListener("submit", guarded(compare));
  $("way-form").addEventListener("submit", guarded(interpolate));
}

export const currentText = () => (shown ? shown.prompt + tokensOf(shown).map((each) => each.text).join("") : $("prompt").value);

// The settings of the form as a request. Draws a seed unless it is kept.
export function settings() {
  if (!$("lock").checked) $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  const body = { model: $("model").value, seed: Number($("seed").value) };
  for (const [name, , , , , neutral] of SETTINGS) {
    const given = $(name).value;
    if (given !== "" && (neutral === null || Number(given) !== neutral)) body[name] = Number(given);
  }
  const stops = $("stops").value.split("\n").filter((each) => each);
  if (stops.length) body.stop = stops.map((each) => each.replace(/\\([nt\\])/g, (_, letter) => ({ n: "\n", t: "\t", "\\": "\\" })[letter]));
  return body;
}

const tokensOf = (node) => [...node.start, ...node.own];

// The tokens of a choice, each with its log-probability and alternatives.
function read(logprobs) {
  return logprobs.tokens.map((text, i) => ({
    text, logp: logprobs.token_logprobs[i], top: Object.entries(logprobs.top_logprobs?.[i] ?? {}).sort((a, b) => b[1] - a[1]),
  }));
}

// The bytes of a token, in which bytes of an incomplete character are escaped.
const isPart = (text) => /\\x[0-9a-f]{2}/.test(text);
function bytesOf(text) {
  return text.split(/(\\x[0-9a-f]{2})/).flatMap((each) => (isPart(each) ? parseInt(each.slice(2), 16) : [...new TextEncoder().encode(each)]));
}

// The text of bytes; none if a character is not complete.
function decoded(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(Uint8Array.from(bytes));
  } catch {
    return null;
  }
}

// The tokens of a text that comes in parts, as many as the text has: it ends before a stop string. Tokens that are parts
// of a character become one.
export class Fitting {
  constructor() {
    [this.text, this.waiting, this.tokens, this.at] = ["", [], [], 0];
    this.isStuck = false;
  }

  add(text, tokens) {
    this.text += text;
    this.waiting.push(...tokens);
    this.isStuck = false;
  }

  // Takes up to `most` of the tokens that wait; returns whether there are more.
  take(most) {
    let taken = 0;
    while (taken < Math.min(most, this.waiting.length)) {
      const [token, number] = this.next(taken);
      if (!token || !token.text || !this.text.startsWith(token.text, this.at)) break;
      this.at += token.text.length;
      this.tokens.push(token);
      taken += number;
    }
    this.isStuck = !taken; // until there is more text
    this.waiting.splice(0, taken);
    return taken >= most;
  }

  // The token at place `first` of those that wait, and of how many it is made.
  next(first) {
    const token = this.waiting[first];
    if (this.text.startsWith(token.text, this.at) || !isPart(token.text)) return [token, 1];
    let bytes = [], logp = 0;
    for (let i = first; i < Math.min(first + 8, this.waiting.length); i += 1) {
      bytes = [...bytes, ...bytesOf(this.waiting[i].text)];
      logp += this.waiting[i].logp;
      const text = decoded(bytes);
      if (text !== null) return [{ text, logp, top: token.top }, i + 1 - first];
    }
    return [null, 0];
  }

  // The rest of a whole text is one token of unknown probability.
  end() {
    if (this.at < this.text.length) this.tokens.push({ text: this.text.slice(this.at), logp: NaN, top: [] });
  }
}

const painted = (token) => {
  const probability = Math.exp(token.logp);
  return { ...token, color: probabilityColor(probability), title: Number.isFinite(probability) ? percent(probability) : "parts of characters" };
};

// The next frame; a page that cannot be seen has none.
const frame = () => new Promise((done) => {
  requestAnimationFrame(done);
  setTimeout(done, 100);
});

// Streams a text into `drawn(tokens so far)`; resolves with its receipt. A page that draws all the time would take no
// click: it draws a few tokens in each frame, and reads no faster.
async function draw(body, signal, drawn) {
  const found = new Fitting();
  let receipt = null, ended = false;
  const drawing = (async () => {
    for (let more = true; more || !ended;) {
      await frame();
      if (signal.aborted) return;
      more = found.take(PER_FRAME);
      drawn(found.tokens);
    }
    found.end();
    drawn(found.tokens);
  })();
  try {
    await stream(body, signal, async (choice) => {
      found.add(choice.text, choice.logprobs ? read(choice.logprobs) : []);
      receipt = choice.receipt ?? receipt;
      while (found.waiting.length > AHEAD && !found.isStuck && !signal.aborted) await frame();
    });
  } finally {
    ended = true;
    await drawing;
  }
  return receipt;
}

// Runs `action(signal)`, which "Stop" ends.
async function whileRunning(action) {
  running?.abort();
  const own = (running = new AbortController());
  const buttons = STOPS.map($);
  buttons.forEach((each) => { each.disabled = false; });
  $("status").textContent = "Writing …";
  let said = "";
  try {
    await action(own.signal);
    said = "Done.";
  } finally {
    if (running === own) {
      // A stream that is stopped may also end without an error.
      $("status").textContent = own.signal.aborted ? "Stopped." : said;
      running = null;
      buttons.forEach((each) => { each.disabled = true; });
    }
  }
}

// Generates a text: a new one, or a branch of `parent` that begins with the tokens `start`.
async function generate(parent, start, prompt, label = "") {
  const body = settings();
  const before = parent ? parent.prompt : prompt;
  body.prompt = before + start.map((each) => each.text).join("");
  const node = { parent, prompt: before, start, own: [], children: [], label: label || quoted(body.prompt.slice(-24)), body, receipt: null };
  const tree = roots; // another one if the model changes meanwhile
  await whileRunning(async (signal) => {
    let drawn = 0;
    try {
      node.receipt = await draw({ ...body, logprobs: ALTERNATIVES }, signal, (tokens) => {
        if (!tokens.length || tree !== roots) return;
        node.own = tokens;
        if (!drawn) {
          const withKeyboard = $("alternatives").contains(document.activeElement);
          (parent ? parent.children : roots).push(node);
          show(node);
          if (withKeyboard) output.focus(start.length); // the token that was picked
        } else if (shown === node) {
          output.add(tokens.slice(drawn).map(painted), true);
        }
        drawn = tokens.length;
      });
    } finally {
      if (shown === node) showRest();
      if (signal.aborted && node.own.length) addReceipt(node).catch(fail);
    }
  });
}

// A stopped text is the one of its own length: the server writes it once more, and its receipt comes with it.
async function addReceipt(node) {
  const { choices: [choice] } = await post("v1/completions", { ...node.body, max_tokens: node.own.length });
  node.receipt = choice.receipt;
  if (shown === node) showReceipt();
}

// Shows a node of the tree. `remember`: "Undo" returns to the one before.
function show(node, remember = true) {
  if (remember && shown) history.push(shown);
  shown = node;
  output.clear();
  $("alternatives").hidden = true;
  output.add([{ text: node.prompt }, ...tokensOf(node).map(painted)]);
  showRest();
}

// What stands below the text.
function showRest() {
  $("continue").disabled = false;
  $("undo").disabled = !history.length;
  $("branches-part").hidden = roots.length + roots[0].children.length < 2;
  $("branches").replaceChildren(...roots.map(branch));
  showReceipt();
}

function branch(node) {
  const words = `${node.label} (${node.own.length})`;
  const button = make("button", { type: "button", textContent: words, title: `${node.own.length} tokens, seed ${node.body.seed}` });
  if (node === shown) button.setAttribute("aria-current", "true");
  button.addEventListener("click", () => { running?.abort(); show(node); });
  const item = make("li", {}, button);
  if (node.children.length) item.append(make("ul", {}, ...node.children.map(branch)));
  return item;
}

// What else could have stood at an element of the text; the first is the prompt.
function showAlternatives(i, pinned) {
  const panel = $("alternatives"), tokens = tokensOf(shown), token = tokens[i - 1];
  if (!token?.top.length) return;
  const said = make("p", {}, make("code", { textContent: quoted(token.text) }), ` had ${percent(Math.exp(token.logp))}. Continue from another one:`);
  const buttons = token.top.filter(([text]) => !isPart(text)).map(([text, logp]) => {
    const button = make("button", { type: "button", textContent: `${quoted(text)} ${percent(Math.exp(logp))}` });
    button.addEventListener("click", guarded(() => {
      const forced = { text, logp, top: token.top, forced: true };
      return generate(shown, [...tokens.slice(0, i - 1), forced], "", `${quoted(text)} instead of ${quoted(token.text)}, token ${i}`);
    }));
    return button;
  });
  panel.replaceChildren(said, make("div", { className: "buttons" }, ...buttons));
  panel.hidden = false;
  if (pinned && document.activeElement.closest("#output")) buttons[0]?.focus();
}

// The receipt

export const shell = (value) => (/^[\w.:/-]+$/.test(value) ? value : `'${String(value).replaceAll("'", "'\\''")}'`);

// The request of a receipt as flags of `jaxgen sample`, or as arguments in Python.
function options(receipt, body) {
  const found = [["length", receipt.settings.length], ["temperature", body.temperature ?? 1], ["seed", receipt.seed]];
  for (const [name, , , , , neutral] of SETTINGS) {
    if (name !== "temperature" && neutral !== null && body[name] !== undefined) found.push([name, body[name]]);
  }
  if (receipt.settings.block !== 1) found.push(["block", receipt.settings.block]);
  return found;
}

function receiptText(kind, receipt, body) {
  if (kind === "json") return JSON.stringify(receipt);
  if (receipt.mix || receipt.adapted_to || !receipt.run) return "Save the JSON as receipt.json, then: jaxgen replay receipt.json";
  const stops = body.stop ?? [];
  if (kind === "python") {
    const words = options(receipt, body).map(([name, value]) => `${name}=${value}`);
    if (stops.length) words.push(`stop=(${stops.map((each) => `${JSON.stringify(each)},`).join(" ")})`);
    return `import jaxgen\n\nmodel = jaxgen.load(${JSON.stringify(receipt.run)})\n` +
      `print(model.generate(${[JSON.stringify(receipt.prompt), ...words].join(", ")}))`;
  }
  const flags = options(receipt, body).map(([name, value]) => `--${name.replaceAll("_", "-")} ${value}`);
  const escaped = stops.map((each) => shell(each.replaceAll("\\", "\\\\").replaceAll("\n", "\\n").replaceAll("\t", "\\t")));
  if (stops.length) flags.push(`--stop ${escaped.join(" ")}`);
  return `jaxgen sample --run ${shell(receipt.run)} --prompt=${shell(receipt.prompt)} ${flags.join(" ")}`;
}

function showReceipt() {
  const receipt = shown?.receipt;
  $("receipt-part").hidden = !receipt;
  $("copied").textContent = "";
  if (receipt) $("receipt").textContent = receiptText($("receipt-kind").value, receipt, shown.body);
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("receipt").textContent);
    $("copied").textContent = "Copied.";
  } catch { // without TLS, browsers let pages of this machine alone copy
    getSelection().selectAllChildren($("receipt"));
    $("copied").textContent = "Selected: copy it with the keyboard.";
  }
}

// Three temperatures, one seed

async function compare() {
  const temperatures = $("temperatures").value.split(/[\s,;]+/).filter((each) => each).map(Number);
  if (!temperatures.length || temperatures.length > 4 || temperatures.some(Number.isNaN)) throw new Error("Give one to four temperatures, such as 0.5 0.8 1.1.");
  const body = { ...settings(), prompt: $("prompt").value };
  const variants = temperatures.map((temperature) => [`Temperature ${temperature}, seed ${body.seed}`, { ...body, temperature }]);
  await sideBySide($("compared"), variants);
}

// Between two prompts

async function interpolate() {
  const steps = Number($("way-steps").value), body = { ...settings(), prompt: "" }, { model } = body;
  const ends = await Promise.all(["way-from", "way-to"].map((name) => post("v1/states", { model, prompt: $(name).value })));
  const weights = Array.from({ length: steps }, (_, i) => i / (steps - 1));
  const variants = await Promise.all(weights.map(async (weight) => {
    const between = { model, state: ends[0].id, to: ends[1].id, weight };
    const state = weight === 0 ? ends[0].id : weight === 1 ? ends[1].id : (await post("v1/states", between)).id;
    const { next } = await post("v1/inspect", { model, state, top: NEXT });
    const tokens = next[0].top.map((each) => `${quoted(each.token)} ${percent(Math.exp(each.logp))}`);
    return [`${Number((100 * weight).toFixed(0))} %: next ${tokens.join(", ")}`, { ...body, state }];
  }));
  await sideBySide($("way"), variants);
}

// Streams texts of several requests, each [title, body], into boxes beside each other in `place`. Resolves with the texts and receipts.
export async function sideBySide(place, variants) {
  let found = [];
  place.replaceChildren();
  await whileRunning(async (signal) => {
    found = await Promise.all(variants.map(async ([words, body], i) => {
      const title = make("h3", { id: `${place.id}-${i}`, textContent: words });
      const box = make("div", { className: "tokens" });
      box.setAttribute("role", "group");
      box.setAttribute("aria-labelledby", title.id);
      place.append(make("div", {}, title, box));
      const tokens = new Tokens(box);
      let done = 0;
      tokens.add([{ text: body.prompt }]);
      const receipt = await draw({ ...body, logprobs: 0 }, signal, (drawn) => {
        tokens.add(drawn.slice(done).map(painted), true);
        done = drawn.length;
      });
      return { text: box.textContent, receipt };
    }));
  });
  return found;
}

export function clear() {
  running?.abort();
  [roots, shown, history] = [[], null, []];
  output.clear();
  fail(null);
  for (const id of ["alternatives", "branches-part", "receipt-part"]) $(id).hidden = true;
  for (const id of ["continue", "undo"]) $(id).disabled = true;
}
