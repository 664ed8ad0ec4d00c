// The view "Runs": the curves of the runs in a folder, live while one trains.

import { CYCLE, lineChart } from "./charts.js";
import { $, guarded, request } from "./api.js";
import { make } from "./tokens.js";

// Milliseconds between two looks, and how many runs are shown at first.
const EVERY = 3000, FIRST = 5;

let runs = [], wanted = new Map(), curves = new Map(), timer = null;

const load = async (path) => (await request(path)).json();
const pathOf = (name) => `v1/runs/${name.split("/").map(encodeURIComponent).join("/")}`;
const ofTask = () => runs.filter((each) => each.task === $("runs-task").value);
const shownRuns = () => ofTask().filter((each) => wanted.get(each.id));

// A run keeps its colour as long as it is shown.
const colors = new Map();
function colorOf(run) {
  if (!colors.has(run.id)) {
    const used = new Set(shownRuns().map((each) => colors.get(each.id)));
    colors.set(run.id, CYCLE.find((each) => !used.has(each)) ?? CYCLE[colors.size % CYCLE.length]);
  }
  return colors.get(run.id);
}

async function look() {
  const found = await load("v1/runs");
  const before = runs.map((each) => each.version + each.training).join();
  runs = found.data;
  const tasks = [...new Set(runs.map((each) => each.task))];
  if ($("runs-task").options.length !== tasks.length) {
    const chosen = $("runs-task").value;
    $("runs-task").replaceChildren(...tasks.map((each) => make("option", { value: each, textContent: each })));
    if (tasks.includes(chosen)) $("runs-task").value = chosen;
  }
  const training = runs.filter((each) => each.training).length;
  $("runs-note").textContent = runs.length
    ? `${runs.length} ${runs.length === 1 ? "run" : "runs"}, in ${found.folder} or served; ${training || "none"} in training.` +
      (found.left_out ? ` ${found.left_out} more are damaged, or too many.` : "")
    : `There is no run in ${found.folder}. Train one with jaxgen train, or start the server with --runs FOLDER.`;
  $("runs-result").hidden = !runs.length;
  if (!runs.length || (before === runs.map((each) => each.version + each.training).join() && curves.size)) return;
  await show();
}

async function show() {
  for (const run of ofTask().slice(0, FIRST)) if (!wanted.has(run.id)) wanted.set(run.id, true);
  fillTable();
  const old = shownRuns().filter((each) => curves.get(each.id)?.version !== each.version);
  for (const each of await Promise.all(old.map((each) => load(pathOf(each.id))))) curves.set(each.id, each);
  drawCharts();
}

const words = (name) => name.replace(/^val_/, "").replaceAll("_", " ");

function drawCharts() {
  const shown = shownRuns().filter((each) => curves.has(each.id)), [first] = ofTask();
  if (!first) return;
  const line = (run, name, dashed) => ({
    name: dashed ? `${run.id}, training` : run.id, color: colorOf(run), dashed, points: curves.get(run.id).curves[name] ?? [],
  });
  const logarithmic = $("runs-log").checked, losses = shown.map((each) => line(each, "val_loss", false));
  if ($("runs-train").checked) losses.push(...shown.map((each) => line(each, "train_loss", true)));
  lineChart($("runs-loss"), { title: `Loss in nats per ${first.target}`, x: "step", lines: losses, logarithmic });
  $("runs-metric").hidden = first.metric === "val_loss";
  if (first.metric === "val_loss") return;
  const title = `Validation: ${first.label || words(first.metric)}`;
  lineChart($("runs-metric"), { title, x: "step", lines: shown.map((each) => line(each, first.metric, false)), logarithmic });
}

function fillTable() {
  const focused = document.activeElement?.closest("#runs-table input")?.name;
  $("runs-table").tBodies[0].replaceChildren(...ofTask().map((run) => {
    const box = make("input", { type: "checkbox", name: run.id, checked: wanted.get(run.id) ?? false });
    box.addEventListener("change", guarded(() => {
      wanted.set(run.id, box.checked);
      if (!box.checked) colors.delete(run.id);
      return show();
    }));
    const swatch = make("span", { className: "swatch" });
    if (box.checked) swatch.style.backgroundColor = colorOf(run);
    const best = run.best === null ? "none yet" : `${words(run.metric)} ${Number(run.best.toPrecision(4))}`;
    const state = run.training ? "training" : run.step < run.steps ? "stopped" : "done";
    const steps = `${run.step.toLocaleString("en")} of ${run.steps.toLocaleString("en")}, ${state}`;
    const cells = [best, steps, run.model, run.data, run.date.slice(0, 16).replace("T", " ")];
    return make("tr", {}, make("th", { scope: "row" }, make("label", {}, box, swatch, run.id)),
      ...cells.map((each) => make("td", { textContent: each })));
  }));
  if (focused) $("runs-table").querySelector(`input[name="${CSS.escape(focused)}"]`)?.focus();
}

// Looks at the folder again and again while the view is shown.
export function watch(isShown) {
  clearInterval(timer);
  timer = null;
  if (!isShown) return;
  guarded(look)();
  timer = setInterval(async () => {
    if (document.hidden) return;
    try {
      await look();
    } catch (error) {
      $("runs-note").textContent = `The server does not answer: ${error.message}`;
    }
  }, EVERY);
}

export function setUp() {
  $("runs-task").addEventListener("change", guarded(show));
  for (const name of ["runs-log", "runs-train"]) $(name).addEventListener("change", drawCharts);
  addEventListener("resize", () => { if (!$("runs").hidden) drawCharts(); });
}
