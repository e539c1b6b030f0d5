// Responses of a run over time, in words.
"use strict";

function sampleCard(row) {
  const judged = row.correct === null || row.correct === undefined ? "" : row.correct ? "✓ correct" : "✗ wrong";
  const scores = Object.entries(row.rewards || {}).map(([name, value]) => `${visibleText(name)} ${number(value)}`);
  const cut = row.finish_reason === "length" ? ["ended by the length limit"] : [];
  const facts = [`reward ${number(row.reward)}`, ...scores, counted(row.response_length, "token"), ...cut];
  const parts = [make("header", "", make("span", row.correct ? "right" : "wrong", judged), ` ${facts.join(" · ")}`)];
  if (row.question !== null) parts.push(make("p", "said asked", ...visible(row.question)));
  parts.push(make("p", "said", ...visible(row.response ?? "")));
  if (row.ground_truth !== null) parts.push(make("header", "", "truth: ", ...visible(row.ground_truth)));
  return make("article", "sample", ...parts);
}

/** A heading for each epoch, and its responses side by side. */
function sampleSection(run, named) {
  const { rows, source, note } = run.samples;
  const title = named ? [make("h4", "", ...visible(run.name))] : [];
  if (!rows.length) return note ? [...title, make("p", "nothing", note)] : [];
  const epochs = [...new Set(rows.map((row) => row.epoch))];
  const parts = epochs.map((epoch) => {
    const own = rows.filter((row) => row.epoch === epoch);
    const about = `epoch ${epoch}, ${counted(own.length, "response")}`;
    const part = make("details", "", make("summary", "", about), make("div", "samples", ...own.map(sampleCard)));
    part.open = epoch === epochs[0] || epoch === epochs.at(-1);
    return part;
  });
  return [...title, ...parts, make("p", "of", "from ", ...visible(source))];
}
