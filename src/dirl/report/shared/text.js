// What all pages share: elements, texts of which everything is seen, numbers.
"use strict";

const at = (id) => document.getElementById(id);

const BYTES = /^(?:<0x[0-9A-F]{2}>)+$/;

/** An element with a class and children; texts become text nodes, so nothing in them is obeyed. */
function make(tag, name = "", ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

const NAMED = { "\n": "↵", "\r": "␍", "\t": "→", "\u00a0": "⍽" };
// Controls, spaces without width, marks of direction and what else has no picture.
const HIDDEN = new RegExp(
  "[\\u0000-\\u001f\\u007f-\\u00a0\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f\\u200b-\\u200f" +
  "\\u2028-\\u202f\\u205f-\\u206f\\u3164\\ufeff\\uffa0\\ufff0-\\uffff\\ud800-\\uf8ff\\u{e0000}-\\u{10ffff}]",
  "gu",
);

/**
 * A text in parts that can be seen: `plain` and `space` as they are, `mark` for what cannot be seen, `newline` behind
 * which a line ends, `byte` for one of a character that other tokens complete.
 */
function visibleParts(text) {
  if (text === "") return [{ kind: "mark", text: "∅" }];
  if (/^ +$/.test(text)) return [{ kind: "space", text }];
  if (BYTES.test(text)) return text.match(/[0-9A-F]{2}(?=>)/g).map((digits) => ({ kind: "byte", text: digits }));
  const parts = [];
  let end = 0;
  for (const found of text.matchAll(HIDDEN)) {
    if (found.index > end) parts.push({ kind: "plain", text: text.slice(end, found.index) });
    end = found.index + found[0].length;
    const code = found[0].codePointAt(0);
    const name = NAMED[found[0]] || `U+${code.toString(16).toUpperCase().padStart(4, "0")}`;
    parts.push({ kind: found[0] === "\n" ? "newline" : "mark", text: name });
  }
  if (end < text.length) parts.push({ kind: "plain", text: text.slice(end) });
  return parts;
}

/** The same as one text, for a list or a tooltip. */
function visibleText(text) {
  return visibleParts(text).map((part) => part.text).join("");
}

/** A number as it is read: few digits, a minus of the same width as a plus. */
function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  return String(Number.isInteger(value) ? value : Number(value.toPrecision(digits))).replace("-", "−");
}

function counted(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

/** Nodes of a text of the data. */
function visible(text) {
  return visibleParts(text).flatMap((part) => {
    if (part.kind === "newline") return ["\n"];
    return [part.kind === "plain" || part.kind === "space" ? part.text : make("span", "mark", part.text)];
  });
}

/** A tooltip at a place of the window; null: none. */
function tip(text, x, y) {
  const box = at("tip");
  box.hidden = text === null;
  if (text === null) return;
  box.textContent = text;
  box.style.left = `${Math.min(x + 12, innerWidth - box.offsetWidth - 8)}px`;
  box.style.top = `${y + 18 + box.offsetHeight > innerHeight ? y - box.offsetHeight - 10 : y + 18}px`;
}

if (typeof module !== "undefined") module.exports = { visibleParts, visibleText, number, counted };
