// A response as a card: its scores, and its tokens, which are masked and committed as the step moves.
"use strict";

class Card {
  /** `page` has traces, theme and colour; the tokens are made when they come into view. */
  constructor(page, i) {
    Object.assign(this, { page, i, at: 0, byForward: [], drawn: false });
    this.forwards = page.traces.forwards(i);
    this.logprobs = page.traces.data.logprobs[i].map((value) => value * page.traces.data.logprob_unit);
    this.length = page.traces.columns.response_length[i];
    this.tokens = make("div", "tokens");
    this.element = make("article", "card", this.header(), this.tokens);
    this.element.card = this;
  }

  get steps() {
    return this.forwards.list.length;
  }

  header() {
    const { columns, data } = this.page.traces;
    const { i } = this;
    const title = make("h2", "", `#${columns.sample_index[i]}  `, ...judgement(columns.correct[i]));
    const stopped = columns.finish_reason[i] === "stop" ? "stopped" : "cut off at the limit";
    const speed = number(tokensPerStep(this.page.traces, i));
    const facts = `${this.length} tokens, ${this.steps} denoising steps, ${speed} per step, ${stopped}`;
    const members = this.page.traces.groups[this.page.traces.groupOf[i]];
    const table = make("table", "scores");
    const add = (name, values) => {
      const most = Math.max(...members.map((m) => Math.abs(values[m])));
      if (values[i] !== null) table.append(scoreRow(name, values[i], most));
    };
    add("reward", columns.reward);
    for (const [name, values] of Object.entries(data.rewards)) add(visibleText(name), values);
    add("advantage", columns.advantage);
    return make("header", "", title, make("p", "facts", facts), table);
  }

  /** Make the tokens, once. */
  draw() {
    if (this.drawn) return;
    this.drawn = true;
    const { data } = this.page.traces;
    const prompt = data.prompts[this.page.traces.columns.prompt[this.i]].tokens;
    const offset = prompt.length % data.block_size;
    this.elements = [];
    this.blocks = [];
    this.byForward = this.forwards.list.map(() => []);
    const hit = hits(this.page.traces, this.i, this.page.filter.text);
    data.response_ids[this.i].forEach((token, position) => {
      const block = this.forwards.blocks[position];
      if (!this.blocks[block]) {
        this.blocks[block] = make("span", "block", make("sup", "", String(block + 1)));
        const shared = block === 0 ? prompt.slice(prompt.length - offset) : [];
        this.blocks[block].append(...shared.map((t) => this.token(t, "prompt")));
        this.tokens.append(this.blocks[block]);
      }
      if (position === this.length) this.blocks[block].append(make("span", "end", "end"));
      const element = this.token(token, position >= this.length ? "tail" : hit.has(position) ? "hit" : "");
      element.dataset.position = position;
      if (this.logprobs[position] < Math.log(0.5)) element.classList.add("unsure");
      this.elements.push(element);
      this.byForward[this.forwards.of[position]].push(element);
      this.blocks[block].append(element, make("wbr"));
    });
    this.blocks.forEach((block) => {
      const end = block.querySelector(".tok:last-of-type > br:last-child");
      if (end) block.after(end); // else an empty end of the block stands on the next line
    });
    this.paint();
    this.at = this.steps;
    this.goTo(this.page.step);
    if (this.page.view === "one") this.tokens.querySelector(".hit")?.scrollIntoView({ block: "nearest" });
  }

  token(token, name) {
    const { traces } = this.page;
    const element = make("span", `tok ${name} ${traces.special.has(token) ? "special" : ""}`);
    for (const part of visibleParts(tokenText(traces.data, token))) {
      element.append(part.kind === "plain" || part.kind === "space" ? part.text : make("span", "mark", part.text));
      if (part.kind === "newline") element.append(make("br"));
    }
    return element;
  }

  /** Colour of a position, by what is chosen. */
  colour(position) {
    const { theme, colour, most } = this.page;
    const step = this.page.traces.data.step_maps[this.i][position];
    const place = colour === "step" ? (step - 1) / Math.max(most - 1, 1) : Math.exp(this.logprobs[position]);
    return colourAt(theme, colour, place);
  }

  paint() {
    if (!this.drawn) return;
    this.elements.forEach((element, position) => {
      const { back, ink } = this.colour(position);
      element.style.backgroundColor = back;
      element.style.color = ink;
    });
  }

  /** Show what stands after so many forwards; only what changes is touched. */
  goTo(step) {
    if (!this.drawn) return;
    const wanted = Math.min(step, this.steps);
    this.mark(false);
    for (let k = this.at; k < wanted; k += 1) this.byForward[k].forEach((e) => e.classList.remove("masked"));
    for (let k = wanted; k < this.at; k += 1) this.byForward[k].forEach((e) => e.classList.add("masked"));
    this.at = wanted;
    this.mark(true);
  }

  /** Of the last forward that is done: its tokens and its block; nothing where all is done. */
  mark(on) {
    if (this.at === 0 || (this.at === this.steps && this.page.step >= this.page.steps && on)) return;
    this.byForward[this.at - 1].forEach((e) => e.classList.toggle("new", on));
    this.blocks[this.forwards.list[this.at - 1].block].classList.toggle("now", on);
  }

  /** What a tooltip says of a position. */
  about(position) {
    const { data } = this.page.traces;
    const token = data.response_ids[this.i][position];
    const { block, steps } = this.forwards.list[this.forwards.of[position]];
    const logprob = this.logprobs[position];
    const step = data.step_maps[this.i][position];
    const lines = [
      `“${visibleText(tokenText(data, token))}”   id ${data.ids[token]}`,
      `position ${position + 1} of ${this.length}${position >= this.length ? " (behind the end)" : ""}`,
      `block ${block + 1}, denoising step ${step} of ${steps}`,
      `probability ${number(Math.exp(logprob))}, log-prob ${number(logprob, 4)}`,
    ];
    const whole = this.characters(position);
    if (whole) lines.push(whole.includes("\ufffd") ? "bytes of no character" : `bytes of “${visibleText(whole)}”`);
    return lines.join("\n");
  }

  /** The characters that the bytes of a token are a part of; "" if it is no bytes. */
  characters(position) {
    const { data } = this.page.traces;
    const ids = data.response_ids[this.i];
    const isBytes = (p) => p >= 0 && p < ids.length && tokenText(data, ids[p]).includes("<0x");
    if (!isBytes(position)) return "";
    let [first, last] = [position, position];
    while (isBytes(first - 1)) first -= 1;
    while (isBytes(last + 1)) last += 1;
    return joined(data, ids.slice(first, last + 1));
  }
}

function judgement(correct) {
  if (correct === null) return [];
  return [correct ? make("span", "right", "✓ correct") : make("span", "wrong", "✗ wrong")];
}

/** A name, a number, and a bar from the middle: to the right above 0, to the left below. */
function scoreRow(name, value, most) {
  const [svg, bar] = ["svg", "rect"].map((tag) => document.createElementNS("http://www.w3.org/2000/svg", tag));
  const width = most ? (Math.abs(value) / most) * 34 : 0;
  const [x, fill] = value < 0 ? [35 - width, "var(--bad)"] : [35, "var(--good)"];
  const shape = { x, y: 2, width, height: 8, fill };
  Object.entries({ width: 70, height: 12, "aria-hidden": "true" }).forEach(([key, v]) => svg.setAttribute(key, v));
  Object.entries(shape).forEach(([key, v]) => bar.setAttribute(key, v));
  svg.append(bar);
  const shown = (value > 0 && name === "advantage" ? "+" : "") + number(value);
  return make("tr", "", make("td", "", name), make("td", "value", shown), make("td", "bar", svg));
}
