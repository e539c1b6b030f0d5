// The chart: log-prob at commit against the denoising step, one dot a token.
"use strict";

const MARGIN = { left: 58, right: 12, top: 10, bottom: 34 };

/** Where a chart of `forwards` steps and log-probs from 0 down to `least` puts things, in pixels of CSS. */
function chartScale(width, height, forwards, least) {
  const [w, h] = [width - MARGIN.left - MARGIN.right, height - MARGIN.top - MARGIN.bottom];
  return {
    x: (forward) => MARGIN.left + (w * (forward + 0.5)) / Math.max(forwards, 1),
    y: (logprob) => MARGIN.top + (h * logprob) / least,
    forward: (x) => Math.floor(((x - MARGIN.left) / w) * forwards),
    left: MARGIN.left, right: width - MARGIN.right, top: MARGIN.top, bottom: height - MARGIN.bottom,
  };
}

/** Round numbers from 0 down to, or past, the least value; about four of them. */
function logprobTicks(least) {
  const size = roundNumber(Math.max(-least, 0.05) / 4);
  const count = Math.ceil(Math.max(-least, 0.05) / size - 1e-9) + 1;
  return Array.from({ length: count }, (_, k) => -Number((k * size).toPrecision(6)) || 0);
}

/** The least of 1, 2, 5, 10, 20, ..., or 0.5, 0.2, ..., that is not below a number. */
function roundNumber(wanted) {
  const power = 10 ** Math.floor(Math.log10(wanted) + 1e-9);
  return [1, 2, 5, 10].map((k) => Number((k * power).toPrecision(3))).find((k) => k >= wanted * (1 - 1e-9));
}

/**
 * Draw it; returns its scale.
 * shown: forwards (of `forwardsOf`), logprobs in nats, length of the response, step (forwards that are done), colour of
 * a position, name of the response.
 */
function drawChart(canvas, shown) {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const style = getComputedStyle(document.documentElement);
  const names = ["ink", "pale", "line", "panel", "accent"];
  const inks = Object.fromEntries(names.map((name) => [name, style.getPropertyValue(`--${name}`)]));
  const { list, of } = shown.forwards;
  const ticks = logprobTicks(shown.logprobs.reduce((a, b) => Math.min(a, b), 0));
  const scale = chartScale(width, height, list.length, ticks[ticks.length - 1]);
  pen.font = "11px system-ui, sans-serif";
  drawBands(pen, scale, list, inks);
  drawAxes(pen, scale, shown, ticks, inks);
  drawMeans(pen, scale, shown, inks);
  shown.logprobs.forEach((logprob, position) => {
    const done = of[position] < shown.step;
    pen.beginPath();
    pen.arc(scale.x(of[position]), scale.y(logprob), 3.2, 0, 2 * Math.PI);
    pen.globalAlpha = position >= shown.length ? 0.25 : done ? 0.9 : 0.35;
    pen.fillStyle = shown.colour(position);
    if (done) pen.fill();
    pen.strokeStyle = done ? inks.ink : inks.pale;
    pen.lineWidth = 0.6;
    pen.stroke();
  });
  pen.globalAlpha = 1;
  drawLine(pen, inks.accent, 2, [[scale.x(shown.step - 0.5), scale.top], [scale.x(shown.step - 0.5), scale.bottom]]);
  return scale;
}

/** Every other block on a darker ground. */
function drawBands(pen, scale, list, inks) {
  pen.fillStyle = inks.panel;
  list.forEach((forward, k) => {
    const from = scale.x(k - 0.5);
    if (forward.block % 2 === 0) pen.fillRect(from, scale.top, scale.x(k + 0.5) - from + 0.5, scale.bottom - scale.top);
  });
}

function drawAxes(pen, scale, shown, ticks, inks) {
  pen.fillStyle = inks.pale;
  pen.textBaseline = "middle";
  pen.textAlign = "right";
  for (const tick of ticks) {
    drawLine(pen, inks.line, 1, [[scale.left, scale.y(tick)], [scale.right, scale.y(tick)]]);
    pen.fillText(number(tick), scale.left - 6, scale.y(tick));
  }
  pen.textAlign = "center";
  const count = shown.forwards.list.length;
  const every = roundNumber(Math.max(count / 12, 1));
  for (let k = every; k <= count; k += every) pen.fillText(String(k), scale.x(k - 1), scale.bottom + 10);
  const title = `denoising step of ${shown.name}, all blocks in a row (bands are blocks)`;
  pen.fillText(title, (scale.left + scale.right) / 2, scale.bottom + 25);
  pen.save();
  pen.translate(9, (scale.top + scale.bottom) / 2);
  pen.rotate(-Math.PI / 2);
  pen.fillText("log-prob at commit", 0, 0);
  pen.restore();
}

/** The mean of the tokens of each step, as a line. */
function drawMeans(pen, scale, shown, inks) {
  const sums = shown.forwards.list.map(() => [0, 0]);
  shown.logprobs.forEach((logprob, position) => {
    if (position >= shown.length) return;
    sums[shown.forwards.of[position]][0] += logprob;
    sums[shown.forwards.of[position]][1] += 1;
  });
  const points = sums.map(([sum, count], k) => [scale.x(k), scale.y(sum / count), count]).filter((point) => point[2]);
  drawLine(pen, inks.pale, 1, points);
}

function drawLine(pen, colour, width, points) {
  pen.beginPath();
  points.forEach(([x, y]) => pen.lineTo(x, y));
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.stroke();
}

/** The position whose dot is nearest to a place, within a few pixels; null: none is. */
function dotAt(scale, shown, x, y) {
  let [best, found] = [64, null];
  shown.logprobs.forEach((logprob, position) => {
    const distance = (scale.x(shown.forwards.of[position]) - x) ** 2 + (scale.y(logprob) - y) ** 2;
    if (distance < best) [best, found] = [distance, position];
  });
  return found;
}

if (typeof module !== "undefined") module.exports = { chartScale, logprobTicks, roundNumber, dotAt };
