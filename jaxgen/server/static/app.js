// The page: views, and the models that are served.

import { $, fail, guarded, request } from "./api.js";
import * as reading from "./reading.js";
import * as runs from "./runs.js";
import * as tasks from "./tasks.js";
import { make, probabilityLegend } from "./tokens.js";
import * as write from "./write.js";

const tabs = [...document.querySelectorAll("[role=tab]")];

function choose(tab) {
  for (const each of tabs) {
    each.setAttribute("aria-selected", String(each === tab));
    each.tabIndex = each === tab ? 0 : -1;
    $(each.getAttribute("aria-controls")).hidden = each !== tab;
  }
  $("model-label").hidden = ["tab-tasks", "tab-runs"].includes(tab.id) || !$("model").options.length;
  fail(null);
  runs.watch(tab.id === "tab-runs");
}

for (const tab of tabs) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const usable = tabs.filter((each) => !each.hidden), at = usable.indexOf(tab);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: usable.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    const next = usable[(to + usable.length) % usable.length];
    choose(next);
    next.focus();
  });
}
for (const button of document.querySelectorAll(".take")) {
  button.addEventListener("click", () => { $(button.dataset.to).value = write.currentText(); });
}
document.querySelectorAll(".scale").forEach(probabilityLegend);
write.setUp();
reading.setUp();
runs.setUp();

guarded(async () => {
  const { data } = await (await request("v1/models")).json();
  const writers = data.filter((each) => each.task === "language"), others = data.filter((each) => each.task !== "language");
  $("model").replaceChildren(...writers.map((each) => make("option", { value: each.id, textContent: each.id })));
  $("beside").append(make("option", { value: "", textContent: "nothing" }), ...writers.map((each) => make("option", { value: each.id, textContent: each.id })));
  $("beside-label").hidden = writers.length < 2;
  $("model").addEventListener("change", () => { write.clear(); reading.clear(); });
  if (others.length) tasks.setUp(others);
  for (const tab of tabs) tab.hidden = tab.id === "tab-tasks" ? !others.length : tab.id !== "tab-runs" && !writers.length;
  $("model-label").hidden = !writers.length;
  if (!writers.length) choose($("tab-tasks"));
  document.body.dataset.ready = "true";
})();
