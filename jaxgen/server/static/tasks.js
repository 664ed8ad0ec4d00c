// The view "Tasks": labels, translations and captions of the models that answer inputs.

import { $, guarded, post } from "./api.js";
import { make, percent } from "./tokens.js";

// The most labels whose probabilities are shown.
const LABELS = 10;

let models = [];
const ofImages = () => models.find((each) => each.id === $("task-model").value)?.task === "caption";

function kind() {
  $("task-text").hidden = ofImages();
  $("task-image").hidden = !ofImages();
}

const dataUrl = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new Error("The image cannot be read."));
  reader.readAsDataURL(file);
});

async function answer() {
  const body = { model: $("task-model").value };
  if (ofImages()) {
    const [file] = $("image").files;
    if (!file) throw new Error("Choose an image.");
    body.image = await dataUrl(file);
  } else {
    body.input = $("inputs").value.split("\n").filter((each) => each);
    if (!body.input.length) throw new Error("Give an input.");
  }
  const { data } = await post("v1/predict", body);
  $("answers").replaceChildren(...data.map((each, i) => make("div", {},
    make("h2", { textContent: body.input ? body.input[i] : "Caption" }),
    make("h3", { textContent: each.label ?? each.text }),
    ...Object.entries(each.probabilities ?? {}).sort((a, b) => b[1] - a[1]).slice(0, LABELS).map(([label, probability]) => {
      const bar = make("meter", { value: probability, ariaLabel: label });
      return make("p", { className: "probability" }, bar, ` ${label} ${percent(probability)}`);
    }))));
}

export function setUp(found) {
  models = found;
  $("task-model").replaceChildren(...models.map((each) => make("option", { value: each.id, textContent: `${each.id} (${each.task})` })));
  $("task-model").addEventListener("change", kind);
  $("tasks-form").addEventListener("submit", guarded(answer));
  for (const name of ["dragover", "drop"]) $("task-image").addEventListener(name, (event) => event.preventDefault());
  $("task-image").addEventListener("drop", guarded((event) => {
    if (event.dataTransfer.files.length) $("image").files = event.dataTransfer.files;
    return answer();
  }));
  kind();
}
