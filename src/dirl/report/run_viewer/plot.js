// A chart: curves of one or several runs as SVG, with a tooltip for the pointer and for the keyboard.
"use strict";

const WIDTH = 480;
const HEIGHT = 230;
const EDGE = { left: 56, right: 12, top: 10, bottom: 24 };
const DOTS_TO = 40;

/** An SVG element with attributes. */
function draw(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

/** A piece of a line, as it is drawn in the charts. */
function sampleLine(look) {
  return draw("svg", { viewBox: "0 0 26 8", "aria-hidden": "true" },
    draw("line", { x1: 0, x2: 26, y1: 4, y2: 4, class: `curve ${look}` }));
}

class Plot {
  /**
   * chart: title, unit, columns of [name, label]; members: runs of the stage, each with a `number`;
   * page: axis and smooth.
   */
  constructor(chart, members, page) {
    Object.assign(this, { chart, page, at: null });
    this.lines = [];
    this.several = members.length > 1;
    members.forEach((run) => chart.columns.forEach(([column, label], k) => {
      if (!Object.hasOwn(run.series, column)) return;
      const { several } = this;
      const look = several ? `k${run.number % 8} d${k % 6}` : `k${k % 8} d${k % 6}`;
      const name = several ? (chart.columns.length > 1 ? `${run.name}: ${label}` : run.name) : label;
      const [steps, values] = run.series[column];
      this.lines.push({ run, look, name, steps, values, smooth: smoothed(values, windowOf(values.length)) });
    }));
    this.svg = draw("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
    const unit = chart.unit ? make("span", "", `  ${chart.unit}`) : "";
    this.element = make("figure", "plot", make("figcaption", "", ...visible(chart.title), unit), this.svg, this.legend());
    this.element.tabIndex = 0;
    this.element.plot = this;
    this.listen();
  }

  /** Of several runs and columns the dashes of the columns alone: the colours of the runs stand above all charts. */
  legend() {
    const { columns, title } = this.chart;
    const entry = (look, name) => make("span", "", sampleLine(look), visibleText(name));
    if (this.several && columns.length > 1) {
      return make("div", "legend", ...columns.map(([, label], k) => entry(`plain d${k % 6}`, label)));
    }
    const plain = (text) => text.toLowerCase().replaceAll("_", " ");
    const said = columns.length === 1 && plain(title).includes(plain(columns[0][1]));
    if (this.several || said) return make("div", "legend");
    return make("div", "legend", ...this.lines.map((line) => entry(line.look, line.name)));
  }

  /** Draw it anew, over steps or over time. */
  draw() {
    const time = this.page.axis === "time";
    for (const line of this.lines) {
      line.x = time && line.run.clock[0].length ? line.steps.map((step) => secondsAt(line.run.clock, step)) : line.steps;
      line.drawn = this.page.smooth ? line.smooth : line.values;
    }
    const xs = this.lines.flatMap((line) => [line.x[0], line.x[line.x.length - 1]]);
    const ys = this.lines.flatMap((line) => extremes(line.values));
    const rows = ticks(Math.min(...ys), Math.max(...ys));
    const [low, high] = [rows[0], rows[rows.length - 1]];
    const [left, right] = [Math.min(...xs), Math.max(...xs)];
    const across = WIDTH - EDGE.left - EDGE.right;
    const down = HEIGHT - EDGE.top - EDGE.bottom;
    this.x = (x) => EDGE.left + (right > left ? ((x - left) / (right - left)) * across : across / 2);
    this.y = (y) => EDGE.top + ((high - y) / (high - low)) * down;
    this.back = (px) => left + ((px - EDGE.left) / across) * (right - left);
    this.svg.replaceChildren(...this.axes(rows, left, right, time), ...this.lines.flatMap((line) => this.curve(line)));
    this.rule = draw("g", {});
    this.svg.append(this.rule);
    this.svg.setAttribute("aria-label", this.about());
    this.at = null;
  }

  axes(rows, left, right, time) {
    const texts = tickTexts(rows);
    const parts = rows.flatMap((row, k) => [
      draw("line", { class: "grid", x1: EDGE.left, x2: WIDTH - EDGE.right, y1: this.y(row), y2: this.y(row) }),
      draw("text", { x: EDGE.left - 6, y: this.y(row) + 4, "text-anchor": "end" }, texts[k]),
    ]);
    const columns = right > left ? ticks(left, right, 5, time).filter((x) => x >= left && x <= right) : [left];
    columns.forEach((x) => parts.push(
      draw("text", { x: this.x(x), y: HEIGHT - 6, "text-anchor": "middle" }, time ? duration(x) : number(x, 6)),
    ));
    return parts;
  }

  curve(line) {
    const points = (values) => values.map((y, k) => `${this.x(line.x[k]).toFixed(1)},${this.y(y).toFixed(1)}`).join(" ");
    const raw = this.page.smooth && windowOf(line.values.length) > 1;
    const parts = raw ? [draw("polyline", { class: `curve raw ${line.look}`, points: points(line.values) })] : [];
    parts.push(draw("polyline", { class: `curve ${line.look}`, points: points(line.drawn) }));
    if (line.x.length <= DOTS_TO) {
      const colour = line.look.split(" ")[0];
      parts.push(...line.x.map((x, k) => draw("circle", {
        class: `dot ${colour}`, cx: this.x(x).toFixed(1), cy: this.y(line.drawn[k]).toFixed(1), r: 2.6,
      })));
    }
    return parts;
  }

  /** What it shows, for who does not see it. */
  about() {
    const ends = this.lines.map((line) => `${line.name} from ${number(line.values[0])} to ${number(line.values.at(-1))}`);
    return `${this.chart.title} over ${this.page.axis}: ${ends.join("; ")}`;
  }

  /** The values nearest to a place of the axis, in a tooltip. */
  show(x, left, top) {
    const found = this.lines.map((line) => ({ line, k: nearest(line.x, x) }));
    const best = found.reduce((a, b) => (Math.abs(b.line.x[b.k] - x) < Math.abs(a.line.x[a.k] - x) ? b : a));
    const place = best.line.x[best.k];
    const near = found.filter(({ line, k }) => Math.abs(this.x(line.x[k]) - this.x(place)) < 8);
    this.at = place;
    const parts = near.map(({ line, k }) => draw("circle", {
      class: `dot ${line.look.split(" ")[0]}`, cx: this.x(line.x[k]), cy: this.y(line.drawn[k]), r: 4,
    }));
    const px = this.x(place);
    this.rule.replaceChildren(
      draw("line", { class: "rule", x1: px, x2: px, y1: EDGE.top, y2: HEIGHT - EDGE.bottom }), ...parts,
    );
    const step = best.line.steps[best.k];
    const head = this.page.axis === "time" ? `${duration(place)} (step ${step})` : `step ${step}`;
    const values = near.map(({ line, k }) => {
      const mean = line.drawn[k] === line.values[k] ? "" : ` (mean ${number(line.drawn[k], 4)})`;
      return `${visibleText(line.name)}: ${number(line.values[k], 5)}${mean}`;
    });
    tip([head, ...values].join("\n"), left, top);
  }

  hide() {
    this.at = null;
    this.rule?.replaceChildren();
    tip(null);
  }

  /** A number of points on, or back, of the line with the most of them. */
  move(by) {
    const line = this.lines.reduce((a, b) => (b.x.length > a.x.length ? b : a));
    const last = line.x.length - 1;
    const begin = this.at === null ? (by < 0 ? last + 1 : -1) : nearest(line.x, this.at);
    const x = line.x[Math.min(Math.max(begin + by, 0), last)];
    const box = this.svg.getBoundingClientRect();
    this.show(x, box.left + (this.x(x) / WIDTH) * box.width, box.top + box.height / 3);
  }

  listen() {
    this.svg.addEventListener("pointermove", (event) => {
      const box = this.svg.getBoundingClientRect();
      this.show(this.back(((event.clientX - box.left) / box.width) * WIDTH), event.clientX, event.clientY);
    });
    this.svg.addEventListener("pointerleave", () => this.hide());
    this.element.addEventListener("blur", () => this.hide());
  }
}

function extremes(values) {
  return values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
}
