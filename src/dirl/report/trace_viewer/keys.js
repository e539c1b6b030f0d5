// Playing, the place in the address, tooltips, keys; and the start of it all.
"use strict";

function pause() {
  clearInterval(page.timer);
  page.timer = null;
  at("play").textContent = "▶ play";
}

function play() {
  if (page.timer !== null || !page.cards.length) return pause();
  if (page.step >= page.steps) goTo(0);
  at("play").textContent = "❚❚ pause";
  const wait = Math.min(Math.max(6000 / page.steps, 50), 400);
  page.timer = setInterval(() => (page.step < page.steps ? goTo(page.step + 1) : pause()), wait);
  return null;
}

/** To the end of the block before, or of this one. */
function moveBlock(direction) {
  const { list } = chosenCard().forwards;
  const block = (step) => (step === 0 ? -1 : list[Math.min(step, list.length) - 1].block);
  let step = page.step + direction;
  while (step > 0 && step < list.length && block(step) === block(step + 1)) step += direction;
  goTo(step);
}

/** The place in the address, so that it can be handed on; browsers refuse too many changes of it at once. */
function remember() {
  clearTimeout(page.remembering);
  const { i, colour, view } = page;
  const place = `#${new URLSearchParams({ t: i, colour, view })}`;
  page.remembering = setTimeout(() => history.replaceState(null, "", place), 400);
}

function recall() {
  const said = new URLSearchParams(location.hash.slice(1));
  if (Number(said.get("t")) in page.traces.columns.prompt) page.i = Number(said.get("t"));
  if (["step", "confidence"].includes(said.get("colour"))) page.colour = said.get("colour");
  if (["one", "group"].includes(said.get("view"))) page.view = said.get("view");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  page.theme = ["light", "dark"].includes(said.get("theme")) ? said.get("theme") : dark.matches ? "dark" : "light";
  dark.addEventListener("change", () => setTheme(dark.matches ? "dark" : "light"));
  document.documentElement.dataset.theme = page.theme;
  return said.has("step") ? Number(said.get("step")) : null;
}

function positionOf(event) {
  const element = event.target.closest?.(".tok[data-position]");
  return element ? [element.closest(".card").card, Number(element.dataset.position)] : null;
}

function neighbour(direction) {
  const place = page.found.indexOf(page.i) + direction;
  if (place >= 0 && place < page.found.length) choose(page.found[place]);
}

const KEYS = {
  ArrowLeft: (event) => (event.shiftKey ? moveBlock(-1) : goTo(page.step - 1)),
  ArrowRight: (event) => (event.shiftKey ? moveBlock(1) : goTo(page.step + 1)),
  Home: () => goTo(0),
  End: () => goTo(page.steps),
  " ": play,
  n: () => neighbour(1),
  p: () => neighbour(-1),
  g: () => setView(page.view === "one" ? "group" : "one"),
  c: () => setColour(page.colour === "step" ? "confidence" : "step"),
  t: () => setTheme(page.theme === "light" ? "dark" : "light"),
  "/": () => at("text").focus(),
  "?": () => at("help").showModal(),
};
const WITHOUT_CARDS = ["/", "?", "t"];

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || at("help").open) return;
  const typing = event.target.matches("input:not([type=range]), select");
  if (typing && event.key === "Escape") {
    event.preventDefault(); // which would empty the field and tell nobody
    event.target.blur();
  }
  const onButton = event.key === " " && event.target.matches("button, summary");
  const action = KEYS[event.key];
  if (typing || onButton || !action || (!page.cards.length && !WITHOUT_CARDS.includes(event.key))) return;
  event.preventDefault();
  action(event);
}

function listen() {
  const on = (id, event, act) => at(id).addEventListener(event, act);
  on("filter", "input", readFilter);
  on("filter", "submit", (event) => event.preventDefault());
  on("filter", "reset", () => setTimeout(readFilter));
  on("list", "scroll", drawList);
  on("step", "input", () => { pause(); goTo(Number(at("step").value)); });
  on("back", "click", () => goTo(page.step - 1));
  on("forth", "click", () => goTo(page.step + 1));
  on("play", "click", play);
  on("colour", "click", (event) => event.target.dataset.value && setColour(event.target.dataset.value));
  on("view", "click", (event) => event.target.dataset.value && setView(event.target.dataset.value));
  on("theme", "click", () => KEYS.t());
  on("help-button", "click", () => KEYS["?"]());
  on("cards", "click", (event) => {
    const found = positionOf(event);
    if (found) goTo(found[0].forwards.of[found[1]] + 1);
  });
  on("cards", "mouseover", (event) => {
    const found = positionOf(event);
    tip(found && found[0].about(found[1]), event.clientX, event.clientY);
  });
  on("cards", "mouseleave", () => tip(null));
  on("chart", "mousemove", (event) => {
    const found = dotAt(page.scale, page.chart, event.offsetX, event.offsetY);
    tip(found === null ? null : chosenCard().about(found), event.clientX, event.clientY);
  });
  on("chart", "mouseleave", () => tip(null));
  on("chart", "click", (event) => goTo(page.scale.forward(event.offsetX) + 1));
  addEventListener("keydown", onKey);
  addEventListener("resize", () => { drawList(); if (page.cards.length) drawFigure(); });
}

const asked = recall();
fillHeader();
listen();
refilter();
if (page.i) choose(page.i);
if (asked !== null) goTo(asked);
requestAnimationFrame(() => setTimeout(() => {
  document.documentElement.dataset.openedMs = performance.now().toFixed(0);
}));
