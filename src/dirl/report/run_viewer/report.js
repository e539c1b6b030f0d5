// The page: its sections, themes, axes and keys.
"use strict";

const report = JSON.parse(at("data").textContent);
const page = { axis: "step", smooth: true, theme: "light", plots: [] };
report.runs.forEach((run, number) => { run.number = number; });

/** A section with a heading that the navigation leads to. */
function section(id, title, ...content) {
  const made = make("section", "", make("h2", "", title), ...content);
  made.id = id;
  const link = make("a", "", title);
  link.href = `#${id}`;
  at("nav").append(link);
  return made;
}

function fill() {
  at("title").textContent = report.title;
  at("summary").textContent = counted(report.runs.length, "run");
  const parts = [
    section("runs", "Runs", runCards(report.runs)),
    section("warnings", "Warnings", warningList(report.runs)),
  ];
  for (const stage of report.stages) parts.push(...stageSections(stage));
  parts.push(section("config", "Config", ...configSection(report.runs)));
  at("main").replaceChildren(...parts);
}

function stageSections(stage) {
  const runs = stage.runs.map((k) => report.runs[k]);
  const prefix = report.stages.length > 1 ? `${stage.kind}: ` : "";
  const id = (name) => `${stage.kind.toLowerCase()}-${name}`;
  const several = runs.length > 1;
  const parts = [];
  const evaluations = evaluationTables(runs);
  if (evaluations.length) parts.push(section(id("evaluations"), `${prefix}Evaluations`, make("div", "side", ...evaluations)));
  parts.push(section(id("curves"), `${prefix}Curves`, ...curveSections(stage, runs)));
  const values = make("details", "", make("summary", "", "all last values"), lastValues(stage.charts, runs));
  values.open = several;
  parts.at(-1).append(values);
  parts.push(section(id("time"), `${prefix}Time and memory`,
    make("div", "phases", ...runs.map((run) => phaseTable(run, several)))));
  const samples = runs.flatMap((run) => sampleSection(run, several));
  if (samples.length) parts.push(section(id("samples"), `${prefix}Samples`, ...samples));
  return parts;
}

function curveSections(stage, runs) {
  const names = [...new Set(stage.charts.map((chart) => chart.section))];
  const legend = make("p", "legend", ...runs.map((run) => make("span", "", sampleLine(`k${run.number % 8}`), visibleText(run.name))));
  const parts = names.map((name) => {
    const plots = stage.charts.filter((chart) => chart.section === name).map((chart) => new Plot(chart, runs, page));
    page.plots.push(...plots);
    return make("div", "", make("h3", "", name), make("div", "charts", ...plots.map((plot) => plot.element)));
  });
  return runs.length > 1 ? [legend, ...parts] : parts;
}

function press(id, value) {
  for (const button of at(id).querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.value === value));
  }
}

function redraw() {
  press("axis", page.axis);
  at("smooth").setAttribute("aria-pressed", String(page.smooth));
  page.plots.forEach((plot) => plot.draw());
}

function setAxis(axis) {
  if (axis === "time" && !timed) return;
  page.axis = axis;
  redraw();
}

function setSmooth(smooth) {
  page.smooth = smooth;
  redraw();
}

function setTheme(theme) {
  page.theme = theme;
  document.documentElement.dataset.theme = theme;
}

/** To the next section from the one at the top of the window, or back. */
function moveSection(direction) {
  const sections = [...document.querySelectorAll("main > section")];
  const top = (element) => element.getBoundingClientRect().top;
  const here = sections.findLastIndex((element) => top(element) < 110);
  sections[Math.min(Math.max(here + direction, 0), sections.length - 1)].scrollIntoView();
}

const KEYS = {
  x: () => setAxis(page.axis === "step" ? "time" : "step"),
  s: () => setSmooth(!page.smooth),
  t: () => setTheme(page.theme === "light" ? "dark" : "light"),
  n: () => moveSection(1),
  p: () => moveSection(-1),
  "?": () => at("help").showModal(),
};
const IN_CHART = {
  ArrowLeft: (plot, event) => plot.move(event.shiftKey ? -10 : -1),
  ArrowRight: (plot, event) => plot.move(event.shiftKey ? 10 : 1),
  Home: (plot) => plot.move(-Infinity),
  End: (plot) => plot.move(Infinity),
  Escape: (plot) => plot.hide(),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || at("help").open) return;
  const { plot } = event.target;
  const action = plot && IN_CHART[event.key];
  if (!action && !KEYS[event.key]) return;
  event.preventDefault();
  if (action) action(plot, event);
  else KEYS[event.key](event);
}

function listen() {
  at("axis").addEventListener("click", (event) => event.target.dataset.value && setAxis(event.target.dataset.value));
  at("smooth").addEventListener("click", KEYS.s);
  at("theme").addEventListener("click", KEYS.t);
  at("help-button").addEventListener("click", KEYS["?"]);
  addEventListener("keydown", onKey);
}

const timed = report.runs.some((run) => run.clock[0].length);
const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
setTheme(dark.matches ? "dark" : "light");
fill();
listen();
const timeButton = at("axis").querySelector("[data-value=time]");
timeButton.disabled = !timed;
if (!timed) timeButton.title = "no event files of TensorBoard, so no times";
redraw();
requestAnimationFrame(() => setTimeout(() => {
  document.documentElement.dataset.openedMs = performance.now().toFixed(0);
}));
