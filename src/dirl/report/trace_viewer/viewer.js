// The page: the list with its filters, the cards of what is chosen, the slider, the keys.
"use strict";

const ROW = 44;
const at = (id) => document.getElementById(id);

const page = {
  traces: openTraces(JSON.parse(at("data").textContent)),
  found: [], i: 0, step: 0, steps: 0, colour: "step", view: "one", theme: "light", cards: [], timer: null,
  filter: {
    text: "", prompt: "", component: "", rewardFrom: null, rewardTo: null, lengthFrom: null, lengthTo: null,
    finish: "", correct: "", order: "file",
  },
};
page.most = page.traces.data.step_maps.reduce((most, steps) => steps.reduce((a, b) => Math.max(a, b), most), 1);

// The list

function fillHeader() {
  const { data, count } = page.traces;
  at("title").textContent = visibleText(data.title);
  const origin = data.texts_from === null ? "tokens by id" : `texts from ${visibleText(data.texts_from)}`;
  const guess = data.block_size_guessed ? " (the smallest that fits)" : "";
  at("summary").textContent =
    `${count} trajectories, ${data.prompts.length} prompts · block size ${data.block_size}${guess} · ${origin}`;
  at("component").append(...["", ...Object.keys(data.rewards)].map((name) => {
    const option = make("option", "", name ? visibleText(name) : "all, weighted");
    option.value = name;
    return option;
  }));
}

function readFilter() {
  const bound = (id) => (at(id).value === "" ? null : Number(at(id).value));
  Object.assign(page.filter, {
    text: at("text").value, prompt: at("prompt").value, component: at("component").value,
    rewardFrom: bound("reward-from"), rewardTo: bound("reward-to"),
    lengthFrom: bound("length-from"), lengthTo: bound("length-to"),
    finish: at("finish").value, correct: at("correct").value, order: at("order").value,
  });
  refilter();
}

function refilter() {
  page.found = filtered(page.traces, page.filter);
  at("found").textContent = `${page.found.length} of ${page.traces.count}`;
  at("list").scrollTop = 0;
  if (!page.found.includes(page.i) && page.found.length) page.i = page.found[0];
  drawList();
  show();
}

/** Rows in view alone. */
function drawList() {
  const list = at("list");
  at("rows").style.height = `${page.found.length * ROW}px`;
  const [first, last] = rowsInView(list.scrollTop, list.clientHeight, ROW, page.found.length);
  at("rows").replaceChildren(...page.found.slice(first, last).map((i, k) => listRow(i, first + k)));
}

function listRow(i, place) {
  const { columns, data } = page.traces;
  const judged = columns.correct[i] === null ? "" : columns.correct[i] ? "✓ " : "✗ ";
  const name = make("b", "", `${judged}${visibleText(data.prompts[columns.prompt[i]].id)} #${columns.sample_index[i]}`);
  const speed = number(tokensPerStep(page.traces, i), 2);
  const reward = columns.reward[i] === null ? "" : `reward ${number(columns.reward[i])} · `;
  const row = make("div", "row", name, make("span", "", `${reward}${columns.response_length[i]} tokens · ${speed} per step`));
  row.style.top = `${place * ROW}px`;
  row.setAttribute("role", "option");
  row.setAttribute("aria-selected", String(i === page.i));
  row.addEventListener("click", () => choose(i));
  return row;
}

function choose(i) {
  page.i = i;
  const [list, top] = [at("list"), page.found.indexOf(i) * ROW];
  if (top < list.scrollTop) list.scrollTop = top;
  if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
  drawList();
  show();
}

// What is chosen

const observer = new IntersectionObserver((entries) => {
  entries.filter((entry) => entry.isIntersecting).forEach((entry) => entry.target.card.draw());
}, { rootMargin: "200px" });

/** The chosen trajectory, or its group, with all committed. */
function show() {
  pause();
  observer.disconnect();
  const { traces } = page;
  const nothing = page.found.length === 0;
  for (const id of ["prompt-text", "controls", "figure"]) at(id).hidden = nothing;
  if (nothing) {
    page.cards = [];
    at("cards").replaceChildren(make("p", "nothing", "No trajectory passes the filter."));
    return;
  }
  const members = page.view === "group" ? traces.groups[traces.groupOf[page.i]] : [page.i];
  page.cards = members.map((i) => new Card(page, i));
  page.steps = Math.max(...page.cards.map((card) => card.steps));
  page.step = page.steps;
  fillPrompt();
  at("cards").className = page.view === "group" ? "group" : "";
  at("cards").replaceChildren(...page.cards.map((card) => card.element));
  page.cards.forEach((card) => {
    card.element.classList.toggle("chosen", page.view === "group" && card.i === page.i);
    card.element.querySelector("header").addEventListener("click", () => page.view === "group" && page.i !== card.i && pick(card));
    observer.observe(card.element);
  });
  at("step").max = page.steps;
  press("colour");
  press("view");
  fillLegend();
  goTo(page.step);
  remember();
}

/** Another member of the group that is shown: the chart and the list follow. */
function pick(card) {
  page.i = card.i;
  page.cards.forEach((other) => other.element.classList.toggle("chosen", other === card));
  drawList();
  goTo(page.step);
  remember();
}

function chosenCard() {
  return page.cards.find((card) => card.i === page.i);
}

function fillPrompt() {
  const { columns, data, groups, groupOf } = page.traces;
  const prompt = data.prompts[columns.prompt[page.i]];
  const parts = [];
  if (prompt.question !== null) parts.push(make("p", "question", ...visible(prompt.question)));
  const size = groups[groupOf[page.i]].length;
  const truth = prompt.ground_truth === null ? "" : `truth: ${visibleText(prompt.ground_truth)} · `;
  const place = `${visibleText(prompt.id)} · ${size} ${size === 1 ? "response" : "responses"} · policy version ${columns.policy_version[page.i]}`;
  parts.push(make("p", "facts", truth + place));
  const tokens = make("details", "", make("summary", "", `prompt as the model reads it: ${prompt.tokens.length} tokens`));
  tokens.append(make("p", "question", ...visible(joined(data, prompt.tokens))));
  tokens.open = prompt.question === null;
  at("prompt-text").replaceChildren(...parts, tokens);
}

/** Nodes of a text of the data. */
function visible(text) {
  return visibleParts(text).flatMap((part) => {
    if (part.kind === "newline") return ["\n"];
    return part.kind === "plain" || part.kind === "space" ? [part.text] : [make("span", "tok", make("span", "mark", part.text))];
  });
}

/** Move to a number of forwards that are done, of the longest response that is shown. */
function goTo(step) {
  page.step = Math.min(Math.max(step, 0), page.steps);
  at("step").value = page.step;
  page.cards.forEach((card) => card.goTo(page.step));
  const card = chosenCard();
  const done = Math.min(page.step, card.steps);
  const forward = card.forwards.list[done - 1];
  const where = done ? `: block ${forward.block + 1}, step ${forward.step} of ${forward.steps}` : ": all masked";
  at("step-text").value = `${done} of ${card.steps} denoising steps${where}`;
  drawFigure();
}

function drawFigure() {
  const card = chosenCard();
  page.chart = {
    forwards: card.forwards, logprobs: card.logprobs, length: card.length, step: Math.min(page.step, card.steps),
    colour: (position) => card.colour(position).back,
  };
  page.scale = drawChart(at("chart"), page.chart);
  at("chart").setAttribute("aria-label", `log-prob at commit of ${card.logprobs.length} tokens against the denoising step`);
}

function fillLegend() {
  const scale = make("span", "scale");
  for (let k = 0; k < 12; k += 1) {
    const piece = make("i");
    piece.style.backgroundColor = colourAt(page.theme, page.colour, k / 11).back;
    scale.append(piece);
  }
  const masked = make("i", "tok masked");
  const ends = page.colour === "step" ? ["step 1 of the block", `step ${page.most}`] : ["probability 0", "1"];
  at("legend").replaceChildren(ends[0], scale, ends[1], masked, "masked");
}

function press(id) {
  at(id).querySelectorAll("button").forEach((b) => b.setAttribute("aria-pressed", String(b.dataset.value === page[id])));
}

function setColour(colour) {
  page.colour = colour;
  if (!page.cards.length) return;
  press("colour");
  fillLegend();
  page.cards.forEach((card) => card.paint());
  drawFigure();
  remember();
}

function setView(view) {
  page.view = view;
  show();
}

function setTheme(theme) {
  page.theme = theme;
  document.documentElement.dataset.theme = theme;
  setColour(page.colour);
}

// Playing, the place in the address, tooltips, keys

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
  page.remembering = setTimeout(() => history.replaceState(null, "", `#${new URLSearchParams({ t: i, colour, view })}`), 400);
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

function tip(text, x, y) {
  const box = at("tip");
  box.hidden = text === null;
  if (text === null) return;
  box.textContent = text;
  box.style.left = `${Math.min(x + 12, innerWidth - box.offsetWidth - 8)}px`;
  box.style.top = `${y + 18 + box.offsetHeight > innerHeight ? y - box.offsetHeight - 10 : y + 18}px`;
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
  if (typing && event.key === "Escape") event.target.blur();
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
requestAnimationFrame(() => setTimeout(() => { document.documentElement.dataset.openedMs = performance.now().toFixed(0); }));
