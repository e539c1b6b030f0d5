// The page: what is chosen of the trajectories, its cards, and the step that they are shown at.
"use strict";

const page = {
  traces: openTraces(JSON.parse(at("data").textContent)),
  found: [], i: 0, step: 0, steps: 0, colour: "step", view: "one", theme: "light", cards: [], timer: null,
  filter: {
    text: "", prompt: "", component: "", rewardFrom: null, rewardTo: null, lengthFrom: null, lengthTo: null,
    finish: "", correct: "", order: "file",
  },
};
page.most = page.traces.data.step_maps.reduce((most, steps) => steps.reduce((a, b) => Math.max(a, b), most), 1);

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
    card.element.querySelector("header").addEventListener("click", () => pick(card));
    observer.observe(card.element);
  });
  const { element } = chosenCard();
  at("cards").scrollLeft = Math.max(0, element.offsetLeft + element.offsetWidth - at("cards").clientWidth);
  at("step").max = page.steps;
  press("colour");
  press("view");
  fillLegend();
  goTo(page.step);
  remember();
}

/** Another member of the group that is shown: the chart and the list follow. */
function pick(card) {
  if (page.view !== "group" || page.i === card.i) return;
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
  const place = `prompt ${visibleText(prompt.id)} · ${counted(size, "response")} · policy version ${columns.policy_version[page.i]}`;
  parts.push(make("p", "facts", truth + place));
  const about = `prompt as the model reads it: ${prompt.tokens.length} tokens`;
  const tokens = make("details", "", make("summary", "", about));
  tokens.append(make("p", "question", ...visible(joined(data, prompt.tokens))));
  tokens.open = prompt.question === null;
  at("prompt-text").replaceChildren(...parts, tokens);
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
    colour: (position) => card.colour(position).back, name: `#${page.traces.columns.sample_index[card.i]}`,
  };
  page.scale = drawChart(at("chart"), page.chart);
  const about = `log-prob at commit of ${card.logprobs.length} tokens against the denoising step`;
  at("chart").setAttribute("aria-label", about);
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
  for (const button of at(id).querySelectorAll("button")) {
    button.setAttribute("aria-pressed", String(button.dataset.value === page[id]));
  }
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
