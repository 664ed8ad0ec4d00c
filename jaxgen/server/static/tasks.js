// The view "Tasks": labels, translations and captions of the models that answer inputs.

import { $, guarded, post } from "./api.js";
import { make, paint, percent, quoted, signedColor } from "./tokens.js";

// The most labels whose probabilities are shown, and the most inputs whose attention is.
const LABELS = 10, ATTENDED = 16;
// Pixels of an image, and of the small one for each word.
const LARGE = 240, SMALL = 96;

let models = [], picture = null;
const model = () => models.find((each) => each.id === $("task-model").value);
const ofImages = () => model()?.task === "caption";

function kind() {
  $("task-text").hidden = ofImages();
  $("task-image").hidden = !ofImages();
  $("answers").replaceChildren();
}

const dataUrl = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Error("The image cannot be read."));
  reader.readAsDataURL(file);
});

// The image in a canvas; with `weights`, those of a square grid, the squares of little weight are dark.
function canvas(size, label, weights) {
  const element = make("canvas", { width: size, height: size, role: "img", ariaLabel: label }), context = element.getContext("2d");
  context.drawImage(picture, 0, 0, size, size);
  if (!weights) return element;
  const across = Math.round(Math.sqrt(weights.length)), square = size / across, most = Math.max(...weights);
  weights.forEach((weight, i) => {
    context.fillStyle = `rgb(0 0 0 / ${0.8 * (1 - weight / most)})`;
    context.fillRect((i % across) * square, Math.floor(i / across) * square, square, square);
  });
  return element;
}

function attended({ written, source, weights, grid }, number) {
  if (grid && picture) {
    const parts = written.map((word, i) => make("figure", {}, canvas(SMALL, `where the model looks for ${word}`, weights[i]), make("figcaption", { textContent: quoted(word) })));
    return make("div", { className: "looks" }, ...parts);
  }
  const head = make("tr", {}, make("th", { scope: "col", textContent: "output, source →" }), ...source.map((each) => make("th", { scope: "col", textContent: quoted(each) })));
  const rows = written.map((word, i) => make("tr", {}, make("th", { scope: "row", textContent: quoted(word) }), ...weights[i].map((weight) => {
    const cell = make("td", { textContent: Math.round(100 * weight), title: percent(weight) });
    paint(cell, signedColor(weight));
    return cell;
  })));
  const box = make("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: `Attention of answer ${number}` });
  box.append(make("table", { className: "attention" }, make("caption", { textContent: "Attention in percent" }), make("thead", {}, head), make("tbody", {}, ...rows)));
  return box;
}

async function answer() {
  const body = { model: $("task-model").value };
  if (ofImages()) {
    const [file] = $("image").files;
    if (!file) throw new Error("Choose an image.");
    picture = await createImageBitmap(file).catch(() => null); // a format that the server reads and the browser does not
    body.image = await dataUrl(file);
  } else {
    body.input = $("inputs").value.split("\n").filter((each) => each.trim());
    if (!body.input.length) throw new Error("Give an input.");
  }
  body.attention = Boolean(model().attention) && (body.input?.length ?? 1) <= ATTENDED;
  $("answers").replaceChildren(make("p", { className: "note", textContent: "Answering …" }));
  let data;
  try {
    ({ data } = await post("v1/predict", body));
  } catch (error) {
    $("answers").replaceChildren();
    throw error;
  }
  $("answers").replaceChildren(...data.map((each, i) => make("article", {},
    make("h2", { textContent: body.input ? body.input[i] : "Caption" }),
    ...(body.image && picture ? [canvas(LARGE, "The image")] : []),
    make("p", { className: "answer", textContent: each.label ?? each.text }),
    ...Object.entries(each.probabilities ?? {}).sort((a, b) => b[1] - a[1]).slice(0, LABELS).map(([label, probability]) => {
      const bar = make("meter", { value: probability, ariaLabel: label });
      return make("p", { className: "probability" }, bar, ` ${label} ${percent(probability)}`);
    }),
    ...(each.attention?.written.length ? [attended(each.attention, i + 1)] : []))));
}

export function setUp(found) {
  models = found;
  $("task-model").replaceChildren(...models.map((each) => make("option", { value: each.id, textContent: `${each.id} (${each.task})` })));
  $("task-model").addEventListener("change", kind);
  $("tasks-form").addEventListener("submit", guarded(answer));
  $("image").addEventListener("change", guarded(answer));
  const place = $("task-image");
  for (const name of ["dragenter", "dragover"]) place.addEventListener(name, (event) => { event.preventDefault(); place.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) place.addEventListener(name, () => place.classList.remove("over"));
  place.addEventListener("drop", guarded((event) => {
    if (!event.dataTransfer.files.length) throw new Error("That is no file: drop an image.");
    $("image").files = event.dataTransfer.files;
    return answer();
  }));
  kind();
}
