// Line charts as SVG, with the same figures as a table.

import { make } from "./tokens.js";

// The colours of jaxgen/plots.py; a test compares them.
export const CYCLE = ["#3a7ec2", "#d95f0e", "#1f9e78", "#c766a4", "#e0a100", "#59b3e6", "#8a6bd1", "#8c8c8c"];
const HEIGHT = 240, MARGIN = { left: 52, right: 26, top: 8, bottom: 34 }, ROWS = 200;

function draw(name, attributes = {}, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

const figure = (value) => String(Number(value.toPrecision(4)));

// About `number` round values from `low` to `high`.
function ticks(low, high, number) {
  const rough = (high - low) / number || 1, unit = 10 ** Math.floor(Math.log10(rough));
  const step = unit * ([1, 2, 5].find((each) => each * unit >= rough) ?? 10);
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high + step * 1e-6; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

// The range of the values but for the few largest: the first steps of a training lie far above the others.
function range(values, whole) {
  const sorted = [...values].sort((a, b) => a - b);
  const low = sorted[0], high = whole || sorted.length < 8 ? sorted.at(-1) : sorted[Math.floor(0.97 * (sorted.length - 1))];
  const room = 0.06 * (high - low) || Math.abs(low) * 0.06 || 1;
  return [low - room, high + room];
}

// A chart of `lines` {name, color, dashed, points: [x, y]} in `box`. `x` and `title` are the names of the axes. Unless it
// is `whole`, the few largest values may lie above it.
export function lineChart(box, { title, x, lines, logarithmic = false, whole = false }) {
  const open = box.querySelector("details")?.open ?? false;
  const points = lines.flatMap((line) => line.points.map(([at, y]) => ({ at, y, line }))).filter((each) => !logarithmic || each.at > 0);
  const heading = make("h3", { textContent: title });
  if (!points.length) {
    box.replaceChildren(heading, make("p", { className: "note", textContent: "No figures yet." }));
    return;
  }
  const width = Math.max(box.clientWidth, 260), across = width - MARGIN.left - MARGIN.right, down = HEIGHT - MARGIN.top - MARGIN.bottom;
  const places = points.map((each) => each.at), first = Math.min(...places), last = Math.max(...places);
  const scale = logarithmic ? Math.log : (value) => value;
  const [low, high] = range(points.map((each) => each.y), whole);
  const left = (at) => MARGIN.left + (across * (scale(at) - scale(first))) / (scale(last) - scale(first) || 1);
  const top = (y) => MARGIN.top + down * (1 - (y - low) / (high - low));
  const name = `${title}, ${x} ${first.toLocaleString("en")} to ${last.toLocaleString("en")}: ` +
    lines.filter((line) => line.points.length).map((line) => `${line.name} ends at ${figure(line.points.at(-1)[1])}`).join(", ");
  const svg = draw("svg", { width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, role: "img", "aria-label": name });
  for (const value of ticks(low, high, 5)) {
    svg.append(draw("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: top(value), y2: top(value) }),
      draw("text", { x: MARGIN.left - 6, y: top(value) + 4, "text-anchor": "end" }, figure(value)));
  }
  const decades = Array.from({ length: 12 }, (_, i) => 10 ** i).filter((each) => each >= first && each <= last);
  for (const value of logarithmic && decades.length > 1 ? decades : ticks(first, last, Math.max(3, across / 100))) {
    if (value < first) continue;
    svg.append(draw("text", { x: left(value), y: HEIGHT - 18, "text-anchor": "middle" }, value.toLocaleString("en")));
  }
  svg.append(draw("text", { x: MARGIN.left + across / 2, y: HEIGHT - 2, "text-anchor": "middle" }, x));
  const inner = draw("svg", { role: "none", x: MARGIN.left, y: MARGIN.top, width: across, height: down, viewBox: `${MARGIN.left} ${MARGIN.top} ${across} ${down}` });
  for (const line of lines) {
    const path = line.points.filter(([at]) => !logarithmic || at > 0).map(([at, y]) => `${left(at).toFixed(1)},${top(y).toFixed(1)}`);
    inner.append(draw("polyline", { points: path.join(" "), fill: "none", stroke: line.color, "stroke-width": line.dashed ? 1.2 : 2,
      "stroke-linejoin": "round", "stroke-dasharray": line.dashed ? "5 3" : "none" }));
    if (path.length === 1) { // such as an n-gram, which is counted in one step: a level to compare with
      const [cx, cy] = path[0].split(",");
      inner.append(draw("circle", { cx, cy, r: 3, fill: line.color }), draw("line", { x1: cx, x2: width, y1: cy, y2: cy, stroke: line.color, "stroke-dasharray": "1 4" }));
    }
  }
  const mark = draw("circle", { r: 4, class: "mark", visibility: "hidden" });
  inner.append(mark);
  svg.append(inner);
  const told = make("p", { className: "note told", textContent: "\u00a0" });
  svg.addEventListener("pointermove", (event) => {
    const distance = (each) => (left(each.at) - event.offsetX) ** 2 + (top(each.y) - event.offsetY) ** 2;
    const nearest = points.reduce((best, each) => (distance(each) < distance(best) ? each : best));
    mark.setAttribute("cx", left(nearest.at));
    mark.setAttribute("cy", top(nearest.y));
    mark.setAttribute("visibility", "visible");
    told.textContent = `${nearest.line.name}, ${x} ${nearest.at.toLocaleString("en")}: ${figure(nearest.y)}`;
  });
  const details = make("details", { open }, make("summary", { textContent: "As a table" }));
  const fill = () => details.open && details.children.length < 2 && details.append(table(x, title, lines));
  details.addEventListener("toggle", fill);
  box.replaceChildren(heading, svg, told, details);
  fill();
}

function table(x, title, lines) {
  const all = [...new Set(lines.flatMap((line) => line.points.map(([at]) => at)))].sort((a, b) => a - b);
  const every = Math.ceil(all.length / ROWS), shown = all.filter((_, i) => (all.length - 1 - i) % every === 0);
  const values = lines.map((line) => new Map(line.points));
  const head = make("tr", {}, ...[x, ...lines.map((line) => line.name)].map((each) => make("th", { scope: "col", textContent: each })));
  const rows = shown.map((at) => make("tr", {}, make("th", { scope: "row", textContent: at.toLocaleString("en") }),
    ...values.map((each) => make("td", { textContent: each.has(at) ? figure(each.get(at)) : "" }))));
  const box = make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: `${title} as a table` });
  box.append(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)));
  return box;
}
