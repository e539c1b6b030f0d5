// The head of the page, the filter, and the list of what it lets through.
"use strict";

const ROW = 44;

function fillHeader() {
  const { data, count } = page.traces;
  at("title").textContent = visibleText(data.title);
  const origin = data.texts_from === null ? "tokens by id" : `texts from ${visibleText(data.texts_from)}`;
  const guess = data.block_size_guessed ? " (guessed from the step maps)" : "";
  const counts = `${counted(count, "trajectory", "trajectories")}, ${counted(data.prompts.length, "prompt")}`;
  at("summary").textContent = `${counts} · block size ${data.block_size}${guess} · ${origin}`;
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
  const facts = `${reward}${columns.response_length[i]} tokens · ${speed} per step`;
  const row = make("div", "row", name, make("span", "", facts));
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
