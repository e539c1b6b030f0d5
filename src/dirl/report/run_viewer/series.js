// Curves as numbers: smoothing, axes, places of points; and what tables say of runs. Nothing here needs a page.
"use strict";

const SMOOTHED_FROM = 60;

/** Places of a running mean of a curve of so many points; 1: it is too short for one. */
function windowOf(count) {
  return count < SMOOTHED_FROM ? 1 : Math.max(5, Math.floor(count / 30) | 1);
}

/** Mean of the values at most half a window away, of fewer at both ends. */
function smoothed(values, window) {
  if (window <= 1) return values;
  const reach = Math.floor(window / 2);
  const sums = [0];
  values.forEach((value, k) => sums.push(sums[k] + value));
  return values.map((_, k) => {
    const [from, to] = [Math.max(0, k - reach), Math.min(values.length, k + reach + 1)];
    return (sums[to] - sums[from]) / (to - from);
  });
}

/** Seconds that a run had worked at a step, between the steps whose time is known by a straight line. */
function secondsAt([steps, seconds], step) {
  const next = steps.findIndex((known) => known >= step);
  if (next < 0) return seconds[seconds.length - 1];
  if (next === 0 || steps[next] === step) return seconds[next];
  const part = (step - steps[next - 1]) / (steps[next] - steps[next - 1]);
  return seconds[next - 1] + part * (seconds[next] - seconds[next - 1]);
}

const TIMES = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 21600, 43200, 86400];

/** Round numbers within, or just around, a range: about `count` of them; `time`: of seconds. */
function ticks(low, high, count = 5, time = false) {
  if (high <= low) {
    const around = Math.abs(low) * 0.1 || 1;
    return low === 0 ? ticks(0, 1, count) : ticks(low - around, high + around, count);
  }
  const wanted = (high - low) / count;
  const size = (time && TIMES.find((known) => known >= wanted)) || roundUp(wanted);
  const first = Math.floor(low / size + 1e-9);
  const found = [];
  for (let k = first; (k - 1) * size < high - 1e-9 * size; k += 1) found.push(Number((k * size).toPrecision(12)));
  return found;
}

/** The numbers of an axis, each with as many digits as tell them apart. */
function tickTexts(values) {
  const gap = values.length > 1 ? Math.abs(values[1] - values[0]) : Math.abs(values[0]) || 1;
  const digits = Math.min(Math.max(0, -Math.floor(Math.log10(gap) + 1e-9)), 20);
  const most = Math.max(...values.map(Math.abs));
  const far = digits > 5 || most >= 1e6;
  return values.map((value) => (far && value ? value.toExponential(1) : value.toFixed(digits)).replace("-", "−"));
}

/** The least of 1, 2, 5, 10, 20, ..., or 0.5, 0.2, ..., that is not below a number. */
function roundUp(wanted) {
  const power = 10 ** Math.floor(Math.log10(wanted) + 1e-9);
  return [1, 2, 5, 10].map((k) => Number((k * power).toPrecision(3))).find((k) => k >= wanted * (1 - 1e-9));
}

/** Seconds as 45s, 3m 20s, 2h 05m. */
function duration(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole}s`;
  if (whole < 3600) return `${Math.floor(whole / 60)}m ${String(whole % 60).padStart(2, "0")}s`;
  return `${Math.floor(whole / 3600)}h ${String(Math.floor(whole / 60) % 60).padStart(2, "0")}m`;
}

/** The number of the value that is nearest to x; values ascend. */
function nearest(values, x) {
  let [low, high] = [0, values.length - 1];
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] <= x) low = middle;
    else high = middle;
  }
  return Math.abs(values[high] - x) < Math.abs(values[low] - x) ? high : low;
}

/** Names of settings that are not the same in all runs, in order. */
function differing(configs) {
  const names = new Set(configs.flatMap((config) => Object.keys(config)));
  return [...names].filter((name) => new Set(configs.map((config) => (Object.hasOwn(config, name) ? config[name] : undefined))).size > 1).sort();
}

/** Decodings of the evaluations of a run, each with its metrics at the first, the best and the last. */
function evaluated(rows) {
  const names = new Set(rows.flatMap((row) => Object.keys(row)).map((name) => name.match(/^eval\/(.+?)\//)?.[1]));
  names.delete(undefined);
  return [...names].map((decoding) => {
    const prefix = `eval/${decoding}/`;
    const own = rows.filter((row) => Object.keys(row).some((name) => name.startsWith(prefix)));
    const worth = (row) => row[`${prefix}accuracy`] ?? row[`${prefix}reward`] ?? 0;
    const best = own.reduce((one, other) => (worth(other) > worth(one) ? other : one));
    const metrics = new Set(own.flatMap((row) => Object.keys(row)).filter((name) => name.startsWith(prefix)));
    const columns = { first: own[0], best, last: own[own.length - 1] };
    return { decoding, columns, metrics: [...metrics].map((name) => name.slice(prefix.length)), prefix };
  });
}

if (typeof module !== "undefined") {
  module.exports = { windowOf, smoothed, secondsAt, ticks, tickTexts, roundUp, duration, nearest, differing, evaluated };
}
