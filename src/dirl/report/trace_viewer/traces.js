// What the page knows of its trajectories, without the page: reading, steps, texts, filters, colours.
// Names are those of dirl.report.trace_data; a trajectory is its number in the file.
"use strict";

/** The data with what is worked out of them on demand. */
function openTraces(data) {
  const columns = data.trajectories;
  const groups = [];
  const groupOf = [];
  const byKey = new Map();
  columns.prompt.forEach((prompt, i) => {
    const key = `${prompt} ${columns.policy_version[i]}`;
    if (!byKey.has(key)) byKey.set(key, groups.push([]) - 1);
    groupOf.push(byKey.get(key));
    groups[byKey.get(key)].push(i);
  });
  groups.forEach((members) => members.sort((a, b) => columns.sample_index[a] - columns.sample_index[b]));
  return {
    data, columns, groups, groupOf,
    count: columns.prompt.length,
    special: new Set(data.special),
    forwards: remembered((i) => forwardsOf(data.step_maps[i], data.block_size, offsetOf(data, i))),
    text: remembered((i) => joined(data, data.response_ids[i].slice(0, columns.response_length[i]))),
  };
}

function remembered(make) {
  const known = new Map();
  return (i) => {
    if (!known.has(i)) known.set(i, make(i));
    return known.get(i);
  };
}

/** Number of prompt tokens in the first block that the response has a part of. */
function offsetOf(data, i) {
  return data.prompts[data.trajectories.prompt[i]].tokens.length % data.block_size;
}

/**
 * The forwards that committed tokens, in order: block and denoising step of each, `of` the number of that which
 * committed a position, `blocks` the block of a position. Blocks and forwards count from 0, denoising steps from 1.
 */
function forwardsOf(steps, blockSize, offset) {
  const blocks = steps.map((_, position) => Math.floor((position + offset) / blockSize));
  const most = [];
  steps.forEach((step, position) => { most[blocks[position]] = Math.max(step, most[blocks[position]] || 0); });
  const list = [];
  const before = [];
  most.forEach((count, block) => {
    before.push(list.length);
    for (let step = 1; step <= count; step += 1) list.push({ block, step, steps: count });
  });
  return { list, blocks, of: steps.map((step, position) => before[blocks[position]] + step - 1) };
}

/** The text of a token by its place in the vocabulary; its id where no text is known. */
function tokenText(data, token) {
  return data.texts[token] === null ? `[${data.ids[token]}]` : data.texts[token];
}

/** The text of several tokens; bytes that make up characters together are these characters. */
function joined(data, tokens) {
  return tokens.map((token) => tokenText(data, token)).join("").replace(/(?:<0x[0-9A-F]{2}>)+/g, (run) => {
    const bytes = run.match(/[0-9A-F]{2}(?=>)/g).map((digits) => parseInt(digits, 16));
    return new TextDecoder().decode(new Uint8Array(bytes));
  });
}

/** For each token where its text begins in `joined`; bytes within a character all begin where it does. */
function textStarts(data, tokens) {
  const starts = [];
  let place = 0;
  for (let first = 0; first < tokens.length;) {
    let last = first;
    while (last < tokens.length && tokenText(data, tokens[last]).includes("<0x")) last += 1;
    last = Math.max(last, first + 1);
    for (let t = first; t < last; t += 1) starts.push(place);
    place += joined(data, tokens.slice(first, last)).length;
    first = last;
  }
  return starts;
}

/** Response tokens per denoising step. */
function tokensPerStep(traces, i) {
  return traces.columns.response_length[i] / traces.forwards(i).list.length;
}

/** The reward of this name; "" is the weighted sum. null: it has none. */
function rewardOf(traces, i, name) {
  const value = name ? (traces.data.rewards[name] || [])[i] : traces.columns.reward[i];
  return value === undefined ? null : value;
}

const ORDERS = {
  file: (traces, i) => i,
  reward: (traces, i) => traces.columns.reward[i],
  advantage: (traces, i) => traces.columns.advantage[i],
  length: (traces, i) => traces.columns.response_length[i],
  speed: tokensPerStep,
};

/**
 * Numbers of the trajectories that a filter lets through, in its order. Bounds are numbers or null; what has no reward
 * passes no bound of it.
 */
function filtered(traces, filter) {
  const words = folded(filter.text);
  const prompt = folded(filter.prompt);
  const { columns, data } = traces;
  const found = [];
  for (let i = 0; i < traces.count; i += 1) {
    const asked = data.prompts[columns.prompt[i]];
    const question = folded(asked.question || "");
    if (prompt && !folded(asked.id).includes(prompt) && !question.includes(prompt)) continue;
    if (!within(rewardOf(traces, i, filter.component), filter.rewardFrom, filter.rewardTo)) continue;
    if (!within(columns.response_length[i], filter.lengthFrom, filter.lengthTo)) continue;
    if (filter.finish && columns.finish_reason[i] !== filter.finish) continue;
    if (filter.correct && String(columns.correct[i]) !== filter.correct) continue;
    if (words && !question.includes(words) && !folded(traces.text(i)).includes(words)) continue;
    found.push(i);
  }
  return ordered(traces, found, filter.order);
}

function within(value, from, to) {
  if (from === null && to === null) return true;
  return value !== null && (from === null || value >= from) && (to === null || value <= to);
}

/** By "length" or, the largest first, "-length"; those without a value come last. */
function ordered(traces, found, order) {
  const sign = order.startsWith("-") ? -1 : 1;
  const key = ORDERS[order.replace("-", "")];
  const values = new Map(found.map((i) => [i, key(traces, i)]));
  return found.sort((a, b) => {
    const [x, y] = [values.get(a), values.get(b)];
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    return sign * (x - y) || a - b;
  });
}

/** Positions of the response that a search finds, as a set. */
function hits(traces, i, words) {
  const found = new Set();
  if (!words) return found;
  const text = folded(traces.text(i));
  const starts = textStarts(traces.data, traces.data.response_ids[i].slice(0, traces.columns.response_length[i]));
  const ends = [];
  for (let p = starts.length - 1, next = text.length; p >= 0; p -= 1) {
    ends[p] = starts[p] === starts[p + 1] ? ends[p + 1] : next;
    next = starts[p];
  }
  let first = 0;
  for (let at = text.indexOf(folded(words)); at >= 0; at = text.indexOf(folded(words), at + 1)) {
    while (ends[first] <= at) first += 1;
    for (let p = first; p < starts.length && starts[p] < at + words.length; p += 1) found.add(p);
  }
  return found;
}

/** In lower case, of the same length: places in one are places in the other. */
function folded(text) {
  const lower = text.toLowerCase();
  if (lower.length === text.length) return lower;
  return Array.from(text, (c) => (c.toLowerCase().length === c.length ? c.toLowerCase() : c)).join("");
}

// Both ramps are told apart with every kind of colour blindness: cividis, and vermilion to blue.
const RAMPS = {
  light: {
    step: ["#fdea6a", "#dccb6d", "#b3a878", "#8c8a7a", "#66697a", "#3c4c72", "#123570"],
    confidence: ["#9c3a00", "#d55e00", "#f0a057", "#f7dcbf", "#dbe9f4", "#a9cfe8"],
  },
  dark: {
    step: ["#22375f", "#3b496c", "#62656f", "#8a8678", "#b3a771", "#dcc85a", "#fee838"],
    confidence: ["#ffa04d", "#e07b1f", "#a8622b", "#5f4d42", "#34475a", "#235a86"],
  },
};

/** Background and text colour at a place from 0 to 1 of a ramp. */
function colourAt(theme, ramp, place) {
  const stops = RAMPS[theme][ramp];
  const scaled = Math.min(Math.max(place, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(scaled), stops.length - 2);
  const [from, to] = [rgb(stops[low]), rgb(stops[low + 1])];
  const mixed = from.map((value, k) => Math.round(value + (to[k] - value) * (scaled - low)));
  return { back: `rgb(${mixed.join(", ")})`, ink: luminance(mixed) > 0.18 ? "#000" : "#fff" };
}

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** Relative luminance as WCAG has it: above 0.18, black has the better contrast. */
function luminance(colour) {
  const [r, g, b] = colour.map((value) => {
    const share = value / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

/** First and last (excluded) row to draw of a list that is scrolled. */
function rowsInView(top, height, rowHeight, count) {
  const first = Math.max(0, Math.floor(top / rowHeight) - 5);
  return [first, Math.min(count, Math.ceil((top + height) / rowHeight) + 5)];
}

if (typeof module !== "undefined") {
  module.exports = {
    openTraces, forwardsOf, joined, textStarts, tokensPerStep, filtered, hits, colourAt, luminance, rowsInView, RAMPS,
  };
}
