// The views "Surprise" and "Look inside": what a model thinks of a text, and what it computes while it reads it.

import { $, guarded, post } from "./api.js";
import { CYCLE, lineChart } from "./charts.js";
import { bitsLegend, make, percent, probabilityColor, probabilityLegend, quoted, signedColor, Tokens, valueLegend } from "./tokens.js";
import { settings, shell, sideBySide } from "./write.js";

// Bits by which two models differ that have the strongest colour.
const PLACES = 10, TOP = 5, CONTEXT = 20, MOST_BITS = 4;
// Tokens that the charts show, as the server's MAX_SHOWN.
const MAX_SHOWN = 500;
// The settings that `jaxgen neurons --clamp` has.
const COMMANDED = ["model", "seed", "prompt", "max_tokens", "temperature"];

// Surprise

// The tokens of the text with their bits; `other` is the same token under the model beside, if there is one with the same tokens.
let scored = [];
const scoredBox = new Tokens($("scored"), (i) => {
  const lines = [[$("model").value, scored[i]], [$("beside").value, scored[i].other]].filter(([, token]) => token).map(([name, token]) => {
    const expected = token.top.map((each) => `${quoted(each.token)} ${percent(Math.exp(each.logp))}`);
    return make("p", { textContent: `${name}: ${token.bits.toFixed(2)} bits, ${percent(Math.exp(token.logp))}. Expected: ${expected.join(", ")}` });
  });
  $("scored-panel").replaceChildren(make("p", {}, make("code", { textContent: quoted(scored[i].token) })), ...lines);
  $("scored-panel").hidden = false;
});

async function score(model, text) {
  const [found] = (await post("v1/score", { model, text, top: TOP, unk: "skip" })).data;
  const tokens = found.per_token.map((each) => ({ ...each, bits: -each.logp / Math.LN2, size: [...each.token].length || 1 }));
  const left = [...text].length - found.chars;
  const words = `${found.bits_per_char.toFixed(3)} bits per character, ${found.tokens} tokens, perplexity ${found.perplexity.toFixed(2)}.` +
    (left > 0 ? ` ${left} characters are not in the vocabulary and are left out.` : "");
  return { tokens, words };
}

async function showSurprise() {
  const names = [$("model").value, $("beside").value].filter((each) => each), text = $("surprise-text").value;
  const [own, other] = await Promise.all(names.map((each) => score(each, text)));
  const same = other && own.tokens.length === other.tokens.length && own.tokens.every((each, i) => each.token === other.tokens[i].token);
  scored = own.tokens.map((each, i) => ({ ...each, other: same ? other.tokens[i] : null }));
  $("bits").textContent = other ? `${names[0]}: ${own.words}` : own.words;
  $("beside-bits").textContent = other ? `${names[1]}: ${other.words}${same ? "" : " Its tokens are others, so only the sums are compared."}` : "";
  $("beside-part").hidden = $("places-by").hidden = !same;
  if (!same) $("scored-shows").value = $("places-order").value = "own";
  colorScored();
  listPlaces();
  $("surprise-result").hidden = false;
}

function colorScored() {
  const shows = $("scored-shows").value, perCharacter = (each) => Math.exp(each.logp / each.size);
  const color = {
    own: (each) => probabilityColor(perCharacter(each)),
    other: (each) => probabilityColor(perCharacter(each.other)),
    difference: (each) => signedColor((each.bits - each.other.bits) / each.size / MOST_BITS),
  }[shows];
  const bits = (each) => `${(each.bits / each.size).toFixed(2)} bits per character`;
  const title = (each) => (each.other ? `${bits(each)}, ${$("beside").value} ${bits(each.other)}` : bits(each));
  scoredBox.clear();
  $("scored-panel").hidden = true;
  scoredBox.add(scored.map((each) => ({ text: each.token, color: color(each), title: title(each) })));
  (shows === "difference" ? bitsLegend : probabilityLegend)($("scored-scale"), MOST_BITS);
}

function listPlaces() {
  const by = { own: (each) => each.bits, worse: (each) => each.bits - each.other.bits, better: (each) => each.other.bits - each.bits }[$("places-order").value];
  const order = [...scored.keys()].sort((a, b) => by(scored[b]) - by(scored[a])).slice(0, PLACES);
  const words = (from, to) => quoted(scored.slice(Math.max(from, 0), to).map((each) => each.token).join(""));
  $("places").replaceChildren(...order.map((i) => {
    const parts = [words(i - CONTEXT, i), make("mark", { textContent: quoted(scored[i].token) }), words(i + 1, i + 1 + CONTEXT)];
    const button = make("button", { type: "button" }, ...parts);
    button.addEventListener("click", () => { scoredBox.focus(i); scoredBox.pick(i); });
    const beside = scored[i].other ? `, ${$("beside").value} ${scored[i].other.bits.toFixed(1)} bits` : "";
    return make("li", {}, button, ` ${scored[i].bits.toFixed(1)} bits${beside}`);
  }));
}

// Look inside

let text = "", seen = null, rows = [], values = [];
const valued = new Tokens($("valued"));
const inspect = (more) => post("v1/inspect", { model: $("model").value, text, unk: "skip", top: TOP, ...more });
const unitName = () => `${$("array").value}:${$("unit").value || 0}`;

async function look() {
  text = $("inside-text").value;
  seen = await inspect({ units: [] });
  const options = Object.entries(seen.arrays).map(([name, size]) => [
    seen.gates.includes(name), make("option", { value: name, textContent: `layer ${name.replace(":", ", ")} (${size} units)` }),
  ]);
  const groups = [["States", false], ["Gates", true]].map(([label, ofGates]) =>
    make("optgroup", { label }, ...options.filter(([isGate]) => isGate === ofGates).map(([, option]) => option)));
  $("array").replaceChildren(...groups.filter((each) => each.children.length));
  $("shown").replaceChildren(make("option", { value: "", textContent: "the unit" }), make("option", { value: "bits", textContent: "bits of each token" }),
    ...seen.distance.map((_, layer) => make("option", { value: layer, textContent: `how far the state of layer ${layer} moves` })));
  $("verdict").textContent = "";
  $("units").hidden = true;
  $("held-result").hidden = true;
  $("inside-result").hidden = false;
  drawDistance();
  await showArray();
}

function drawDistance() {
  const lines = seen.distance.map((layer, i) => ({
    name: `layer ${i}`, color: CYCLE[i % CYCLE.length], points: layer.slice(0, MAX_SHOWN).map((value, t) => [t + 1, value]),
  }));
  lineChart($("distance"), { title: "How far each token moves the state", x: "token", lines, whole: true });
}

async function showArray() {
  rows = (await inspect({ array: $("array").value })).array;
  await showUnit();
}

async function showUnit() {
  const name = unitName(), found = await inspect({ units: [name] });
  values = found.units[name];
  $("unit-title").textContent = `Unit ${name}`;
  const isGate = seen.gates.includes($("array").value);
  $("hold-part").hidden = isGate;
  $("hold-title").textContent = `Hold unit ${name} at a value`;
  $("hold-value").value = Number(values.reduce((best, each) => (Math.abs(each) > Math.abs(best) ? each : best), 0).toPrecision(3));
  colorText();
  drawMap();
}

// The text in the colours of the unit, or of something else that each token has.
function colorText() {
  const chosen = $("shown").value, numbers = chosen === "" ? values : chosen === "bits" ? seen.bits : seen.distance[chosen];
  const most = Math.max(...numbers.map(Math.abs), 1e-9);
  valued.clear();
  valued.add(seen.tokens.map((each, i) => ({ text: each, color: signedColor(numbers[i] / most), title: numbers[i].toPrecision(3) })));
  valueLegend($("value-scale"), most);
}

// Texts with and without the unit held at a value.
async function hold() {
  const name = unitName(), value = Number($("hold-value").value), prompt = $("hold-prompt").value;
  const body = { ...settings(), prompt };
  $("held-result").hidden = true;
  const [plain, held] = await sideBySide($("held"), [["As it is", body], [`With ${name} at ${value}`, { ...body, clamp: { [name]: value } }]]);
  const at = [...plain.text].findIndex((each, i) => each !== [...held.text][i]);
  $("held-note").textContent = at < 0 ? "Both texts are the same." : `Up to character ${at + 1} both texts are the same.`;
  const run = Object.keys(body).every((each) => COMMANDED.includes(each)) && held.receipt?.run;
  $("held-command").textContent = run ? `jaxgen neurons --run ${shell(run)} --clamp ${name}=${value} --prompt ${shell(prompt)} ` +
    `--length ${body.max_tokens} --temperature ${body.temperature ?? 1} --seed ${body.seed}` : "";
  $("held-result").hidden = false;
}

function drawMap() {
  const canvas = $("map"), units = rows[0]?.length ?? 0, [wide, high] = cell();
  canvas.width = rows.length * wide;
  canvas.height = units * high;
  canvas.setAttribute("aria-label", `${units} units at ${rows.length} tokens of ${$("array").value}; unit ${$("unit").value} is framed`);
  const context = canvas.getContext("2d");
  const sizes = rows.flat().map(Math.abs).sort((a, b) => a - b);
  const most = sizes[Math.floor(0.99 * (sizes.length - 1))] || 1e-9; // the few beyond it have its colour
  rows.forEach((row, t) => row.forEach((value, unit) => {
    context.fillStyle = `rgb(${signedColor(value / most).join(",")})`;
    context.fillRect(t * wide, unit * high, wide, high);
  }));
  valueLegend($("map-scale"), most);
  context.strokeStyle = "black";
  context.strokeRect(0.5, $("unit").value * high - 0.5, canvas.width - 1, high + 1);
}

// Pixels of a token and of a unit in the map.
const cell = () => [Math.min(Math.max(Math.floor(1000 / rows.length), 4), 12), Math.min(Math.max(Math.floor(512 / (rows[0]?.length || 1)), 2), 12)];

async function find() {
  $("verdict").textContent = "Looking …";
  let found;
  try {
    ({ found } = await inspect({ find: $("feature").value || $("pattern").value }));
  } catch (error) {
    $("verdict").textContent = "";
    $("units").hidden = true;
    throw error;
  }
  $("verdict").textContent = `${found.verdict[0].toUpperCase()}${found.verdict.slice(1)}.`;
  const choose = guarded(async (event) => {
    const [, array, unit] = event.target.textContent.match(/^(.*):(\d+)$/);
    const other = $("array").value !== array;
    [$("array").value, $("unit").value] = [array, unit];
    await (other ? showArray() : showUnit());
  });
  $("units").tBodies[0].replaceChildren(...found.units.map((each) => {
    const button = make("button", { type: "button", textContent: each.unit });
    button.addEventListener("click", choose);
    const cells = [each.chosen, each.score].map((value) => make("td", { textContent: value.toFixed(3) }));
    return make("tr", {}, make("th", { scope: "row" }, button), ...cells);
  }));
  $("units").hidden = false;
}

export function setUp() {
  $("surprise-form").addEventListener("submit", guarded(showSurprise));
  $("scored-shows").addEventListener("change", colorScored);
  $("places-order").addEventListener("change", listPlaces);
  $("inside-form").addEventListener("submit", guarded(look));
  $("array").addEventListener("change", guarded(() => { $("unit").value = 0; return showArray(); }));
  $("unit").addEventListener("change", guarded(showUnit));
  $("find-form").addEventListener("submit", guarded(find));
  $("hold-form").addEventListener("submit", guarded(hold));
  $("shown").addEventListener("change", colorText);
  $("feature").addEventListener("change", () => { $("pattern-label").hidden = $("feature").value !== ""; });
  $("map").addEventListener("click", guarded((event) => {
    $("unit").value = Math.floor((event.offsetY * event.target.height) / event.target.clientHeight / cell()[1]);
    return showUnit();
  }));
}

export function clear() {
  for (const id of ["surprise-result", "inside-result"]) $(id).hidden = true;
}

