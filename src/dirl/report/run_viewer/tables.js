// Tables of runs: facts, warnings, evaluations, last values, time by phase, settings.
"use strict";

/** A table; each cell is a text or an element. */
function table(name, caption, head, rows) {
  const cell = (tag) => (content) => make(tag, "", ...(typeof content === "string" ? visible(content || " ") : [content]));
  const made = make("table", name);
  if (caption) made.append(make("caption", "", ...visible(caption)));
  made.append(make("thead", "", make("tr", "", ...head.map(cell("th")))));
  made.append(make("tbody", "", ...rows.map((row) => make("tr", "", ...row.map(cell("td"))))));
  return make("div", "scroll", made);
}

function runCards(runs) {
  return make("div", "runs", ...runs.map((run) => {
    const facts = make("dl", "facts");
    for (const [name, value] of Object.entries(run.facts)) {
      const said = name === "seconds" ? duration(Number(value)) : value;
      facts.append(make("dt", "", name === "seconds" ? "worked" : name), make("dd", "", ...visible(said)));
    }
    return make("article", "run", make("h3", "", sampleLine(`k${run.number % 8}`), ...visible(run.name)), facts);
  }));
}

/** The warnings of all runs; what has none is said to have none. */
function warningList(runs) {
  const items = runs.flatMap((run) => run.warnings.map((warned) => make(
    "li", "", make("span", "of", runs.length > 1 ? `${visibleText(run.name)}: ` : ""), ...visible(warned.text), " ",
    make("code", "", `${warned.name} = ${number(warned.threshold)}`),
  )));
  if (items.length) return make("ul", "warnings", ...items);
  return make("p", "fine", "No threshold is crossed: accuracy, entropy, groups, truncation, mismatch, rewards and steps.");
}

/** First, best (by accuracy) and last evaluation of each run and decoding. */
function evaluationTables(runs) {
  return runs.flatMap((run) => evaluated(run.evaluations).map(({ decoding, columns, metrics, prefix }) => {
    const at = ([name, row]) => `${name} (step ${row.step})`;
    const caption = runs.length > 1 ? `${run.name}: ${decoding}` : decoding;
    const rows = metrics.map((name) => [
      name, ...Object.values(columns).map((row) => number(row[prefix + name], 4)),
    ]);
    return table("values", caption, ["metric", ...Object.entries(columns).map(at)], rows);
  }));
}

/** The last value of each curve, a column a run. */
function lastValues(charts, runs) {
  const columns = charts.flatMap((chart) => chart.columns.map(([name]) => name));
  const last = (run, name) => (Object.hasOwn(run.series, name) ? number(run.series[name][1].at(-1), 4) : "");
  const rows = columns.map((name) => [name, ...runs.map((run) => last(run, name))]);
  return table("values", "", ["last value of", ...runs.map((run) => run.name)], rows);
}

/** Where an epoch's time goes, as a bar and in numbers, and the peak of memory. */
function phaseTable(run, named) {
  const parts = [];
  const looks = new Map(run.phases.map((phase, k) => [phase.phase, `k${phase.phase === "other" ? 7 : k % 7}`]));
  if (run.phases.length) {
    const bar = draw("svg", { viewBox: "0 0 1000 22", preserveAspectRatio: "none", role: "img" });
    let from = 0;
    for (const { phase, share } of run.phases) {
      const title = draw("title", {}, `${phase}: ${number(100 * share)} %`);
      bar.append(draw("rect", { class: `phase ${looks.get(phase)}`, x: 1000 * from, y: 0, width: 1000 * share, height: 22 }, title));
      from += share;
    }
    bar.setAttribute("aria-label", run.phases.map((p) => `${p.phase} ${number(100 * p.share)} %`).join(", "));
    parts.push(make("div", "stack", bar));
  }
  const swatch = (phase) => make("span", "swatch", sampleLine(looks.get(phase)), visibleText(phase));
  const rows = run.phases.map((phase) => [
    swatch(phase.phase), `${number(100 * phase.share)} %`, number(phase.seconds), number(phase.longest),
  ]);
  const memory = Object.entries(run.memory).map(([name, size]) => `${name.replace(/_gib$/, "")} ${number(size)} GiB`);
  if (rows.length) parts.push(table("values", "", ["phase", "of an epoch", "mean s", "longest s"], rows));
  if (memory.length) parts.push(make("p", "", `memory, peak: ${memory.join(", ")}`));
  if (!parts.length) parts.push(make("p", "nothing", "no epoch has ended yet"));
  return make("div", "", named ? make("h4", "", ...visible(run.name)) : "", ...parts);
}

/** Settings that differ, and all of each run. */
function configSection(runs) {
  const parts = [];
  const configs = runs.map((run) => run.config);
  if (runs.length > 1) {
    const names = differing(configs);
    const rows = names.map((name) => [name, ...configs.map((config) => (Object.hasOwn(config, name) ? config[name] : "not set"))]);
    const caption = `${counted(names.length, "setting differs", "settings differ")}`;
    parts.push(make("details", "", make("summary", "", caption),
      table("values settings", "", ["setting", ...runs.map((run) => run.name)], rows)));
    parts[0].open = names.length <= 40;
  }
  for (const run of runs) {
    const rows = Object.entries(run.config);
    const about = `${visibleText(run.name)}: ${rows.length ? counted(rows.length, "setting") : "no config.yaml"}`;
    parts.push(make("details", "config", make("summary", "", about),
      table("values settings", "", ["setting", "value"], rows)));
  }
  return parts;
}
