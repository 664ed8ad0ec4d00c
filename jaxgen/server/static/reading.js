// The views "Surprise" and "Look inside": what a model thinks of a text, and what it computes while it reads it.

import { $, guarded, post } from "./api.js";
import { make, percent, probabilityColor, quoted, signedColor, Tokens, valueLegend } from "./tokens.js";

const PLACES = 10, TOP = 5, CONTEXT = 20;
// Pixels of a token and of a unit.
const CELL = [4, 2];

// Surprise

let scored = [];
const scoredBox = new Tokens($("scored"), (i) => {
  const token = scored[i], expected = token.top.map((each) => `${quoted(each.token)} ${percent(Math.exp(each.logp))}`);
  $("scored-panel").replaceChildren(
    make("p", {}, make("code", { textContent: quoted(token.token) }), `: ${token.bits.toFixed(2)} bits, ${percent(Math.exp(token.logp))}.`),
    make("p", { textContent: `Expected: ${expected.join(", ")}` }),
  );
  $("scored-panel").hidden = false;
});

async function showSurprise() {
  const text = $("surprise-text").value;
  const [score] = (await post("v1/score", { model: $("model").value, text, top: TOP, unk: "skip" })).data;
  scored = score.per_token.map((each) => ({ ...each, bits: -each.logp / Math.LN2, size: [...each.token].length || 1 }));
  const left = [...text].length - score.chars;
  $("bits").textContent = `${score.bits_per_char.toFixed(3)} bits per character, ${score.tokens} tokens, perplexity ${score.perplexity.toFixed(2)}.` +
    (left > 0 ? ` ${left} characters are not in the vocabulary and are left out.` : "");
  scoredBox.clear();
  $("scored-panel").hidden = true;
  scoredBox.add(scored.map((each) => ({ text: each.token, color: probabilityColor(Math.exp(each.logp / each.size)), title: `${(each.bits / each.size).toFixed(2)} bits per character` })));
  const order = [...scored.keys()].sort((a, b) => scored[b].bits - scored[a].bits).slice(0, PLACES);
  const words = (from, to) => quoted(scored.slice(Math.max(from, 0), to).map((each) => each.token).join(""));
  $("places").replaceChildren(...order.map((i) => {
    const parts = [words(i - CONTEXT, i), make("mark", { textContent: quoted(scored[i].token) }), words(i + 1, i + 1 + CONTEXT)];
    const button = make("button", { type: "button" }, ...parts);
    button.addEventListener("click", () => { scoredBox.focus(i); scoredBox.pick(i); });
    return make("li", {}, button, ` ${scored[i].bits.toFixed(1)} bits`);
  }));
  $("surprise-result").hidden = false;
}

// Look inside

let text = "", values = [], rows = [];
const valued = new Tokens($("valued"));
const inspect = (more) => post("v1/inspect", { model: $("model").value, text, unk: "skip", top: TOP, ...more });
const unitName = () => `${$("array").value}:${$("unit").value || 0}`;

async function look() {
  text = $("inside-text").value;
  const { arrays } = await inspect({ units: [] });
  $("array").replaceChildren(...Object.entries(arrays).map(([name, size]) =>
    make("option", { value: name, textContent: `layer ${name.replace(":", ", ")} (${size} units)` })));
  $("verdict").textContent = "";
  $("units").hidden = true;
  $("inside-result").hidden = false;
  await showArray();
}

async function showArray() {
  rows = (await inspect({ array: $("array").value })).array;
  await showUnit();
}

async function showUnit() {
  const name = unitName(), found = await inspect({ units: [name] });
  values = found.units[name];
  const most = Math.max(...values.map(Math.abs), 1e-9);
  $("unit-title").textContent = `Unit ${name}`;
  valued.clear();
  valued.add(found.tokens.map((each, i) => ({ text: each, color: signedColor(values[i] / most), title: values[i].toPrecision(3) })));
  valueLegend($("value-scale"), most);
  drawMap();
}

function drawMap() {
  const canvas = $("map"), units = rows[0]?.length ?? 0, [wide, high] = CELL;
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
  $("inside-form").addEventListener("submit", guarded(look));
  $("array").addEventListener("change", guarded(() => { $("unit").value = 0; return showArray(); }));
  $("unit").addEventListener("change", guarded(showUnit));
  $("find-form").addEventListener("submit", guarded(find));
  $("feature").addEventListener("change", () => { $("pattern-label").hidden = $("feature").value !== ""; });
  $("map").addEventListener("click", guarded((event) => {
    $("unit").value = Math.floor((event.offsetY * event.target.height) / event.target.clientHeight / CELL[1]);
    return showUnit();
  }));
}

export function clear() {
  for (const id of ["surprise-result", "inside-result"]) $(id).hidden = true;
}

