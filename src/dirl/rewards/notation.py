r"""One spelling for answers: what people and models write for the same mathematics, before it is parsed.

Each step is named and rewrites letters only; nothing here parses or calculates. What math-verify reads already is left
to it.
"""

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal

MAX_EXPONENT = 400
"""The largest exponent of scientific notation that is written out; floats end at 308."""

_SYMBOLS = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad", ""),
    **dict.fromkeys("°º˚", r"^\circ "),
    **dict.fromkeys("⁄∕／", "/"),
    **{"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ", "±": r"\pm ", "∓": r"\mp "},
    **{"≤": r"\le ", "⩽": r"\le ", "≥": r"\ge ", "⩾": r"\ge ", "≠": r"\ne ", "≈": r"\approx "},
    **{"∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "∅": r"\emptyset ", "∖": r"\setminus "},
    **{"π": r"\pi ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta "},
    **{"λ": r"\lambda ", "μ": r"\mu ", "φ": r"\varphi ", "ω": r"\omega ", "σ": r"\sigma ", "√": r"\sqrt "},
    **{"。": ".", "、": ",", "∶": ":"},
}
_SPELLINGS: list[tuple[str, str | Callable[[re.Match[str]], str]]] = [
    (r"(?<!\\)\$", ""),
    (r"\\(?:leqslant|leq)(?![A-Za-z])|<=", r"\\le "),
    (r"\\(?:geqslant|geq)(?![A-Za-z])|>=", r"\\ge "),
    (r"\\neq(?![A-Za-z])|\\not\s*=|(?<![\d)}])!=", r"\\ne "),  # but 5!=120
    (r"\\lt(?![A-Za-z])", "<"),
    (r"\\gt(?![A-Za-z])", ">"),
    (r"\\degree(?![A-Za-z])", r"^\\circ "),
    (r"\\varnothing(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset "),
    (r"\\mathbb\s+([A-Z])", r"\\mathbb{\1}"),
    (r"\+\s*\\infty", r"\\infty"),
    (r"\\langle(?![A-Za-z])", "("),
    (r"\\rangle(?![A-Za-z])", ")"),
    (r"([)\]])\s*U\s*(?=[(\[])", r"\1\\cup "),
    (r"^\s*(\d{1,2}:\d{2})[\s~]*(?:\\(?:text|mathrm)\s*\{)?\s*[Aa]\.?\s*[Mm]\.?\s*\}?\s*$", r"\1 am"),
    (r"^\s*(\d{1,2}:\d{2})[\s~]*(?:\\(?:text|mathrm)\s*\{)?\s*[Pp]\.?\s*[Mm]\.?\s*\}?\s*$", r"\1 pm"),
    (r"(?<![\d.])(\d*)\.(\d*?)(\d)\3+\s*(?:\.\.\.|…|\\[lc]?dots(?![A-Za-z]))", r"\1.\2\\overline{\3}"),
    (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
    (r"\\sqrt\s+(\d+)", r"\\sqrt{\1}"),
    (r"^\s*\*\*(.+)\*\*\s*$|^\s*`(.+)`\s*$", r"\1\2"),
    (r"\\!", ""),
    (r"\\(?:emph|underline|uline)\s*(?=\{)|\\(?:text)?color\s*\{\w+\}", ""),
    (r"(\^\s*\{?\s*\\circ\s*\}?)\s*(?:[CF]|\\(?:text|mathrm)\s*\{\s*[CF]\s*\})\s*$", r"\1"),
    (r"(?<=[A-Za-z}])('+)", lambda match: "^{" + r"\prime" * len(match[1]) + "}"),  # math-verify drops it
    (r"^\s*([A-J])\)\s*$", r"\1"),
    (r"\\(?:bf|rm|it|displaystyle)(?![A-Za-z])", ""),
]
_BLANKS = re.compile(
    r"(?:\\[,;:]|(?<!\\)\\(?=\s|$)|~|\\q?quad(?![A-Za-z])|\\(?:thin|med|thick|neg)space(?![A-Za-z])|\s)+"
)
_THOUSANDS = re.compile(r"(?<![\d.(\[{])(?<![^\\],)\d{1,3}(?:(?:,\s*\\!\s*|\\[,;:! ]|~|\{,\}|,|\s)\d{3})+(?!,?\d)")
_MIXED = re.compile(r"(-?\d+) +(\d+)/(\d+)")
_SCIENTIFIC = re.compile(r"(?<![\w.\\}^])(\d+\.?\d*|\.\d+)[eE]([+-]?\d+)(?![\w.{^])")
_CURRENCY = re.compile(r"^(-?)\s*(?:\\?\$|[€£¥₹₩₽])\s*(?=[\d.-])|(?<=\d)\s*(?:\\\$|[€£¥₹₩₽])$")
_TAIL = re.compile(r"[\s.,;:]+$")
_REPEATING = re.compile(r"(?<![\d.])(\d*)\.(\d*)\\(?:overline|bar|dot)\s*\{?(\d+)\}?")
_DEGREES = re.compile(
    r"\\(sin|cos|tan|cot|sec|csc)\s*(?:\\left)?[({]?\s*(\d+\.?\d*)\s*\^\s*\{?\s*\\circ\s*\}?\s*(?:\\right)?[)}]?"
)
ELLIPSIS = re.compile(r"\.\.\.|…|\\[lc]?dots(?![A-Za-z])")


def plain(text: str) -> str:
    r"""The answer in ASCII LaTeX: `½.` is `\frac{1}{2}`, `x² – 1` is `x^{2} - 1`, `5e-05` is `0.00005`."""
    text = _characters(text)
    text = _THOUSANDS.sub(lambda m: re.sub(r"\D", "", m[0]), text)
    for pattern, spelling in _SPELLINGS:
        text = re.sub(pattern, spelling, text)
    text = _BLANKS.sub(" ", _DEGREES.sub(r"\\\1{\\frac{\2\\pi}{180}}", _REPEATING.sub(_as_fraction, text))).strip()
    text = text if ELLIPSIS.search(text[-8:]) else _TAIL.sub("", text)
    text = _MIXED.sub(r"\1\\frac{\2}{\3}", text) if _MIXED.fullmatch(text) else text
    return _CURRENCY.sub(r"\1", _SCIENTIFIC.sub(_written_out, text))


def _characters(text: str) -> str:
    """Digits of every script, full-width forms, raised and lowered characters, fractions and symbols in ASCII."""
    if text.isascii():
        return text
    text = "".join(_SYMBOLS.get(c, c) for c in "".join(map(_usual_form, text)))
    text = _scripts(text, "<super>", "^")
    text = _scripts(text, "<sub>", "_")
    return "".join(map(_number_form, text))


def _usual_form(c: str) -> str:
    kind = unicodedata.decomposition(c).partition(" ")[0]
    return unicodedata.normalize("NFKC", c) if kind in ("<wide>", "<narrow>", "<noBreak>", "<font>") else c


def _number_form(c: str) -> str:
    if unicodedata.decomposition(c).startswith("<fraction>"):
        top, bottom = unicodedata.normalize("NFKC", c).split("\u2044")
        return rf"\frac{{{top}}}{{{bottom}}}"
    digit = unicodedata.decimal(c, None)
    return c if digit is None else str(digit)


def _scripts(text: str, kind: str, sign: str) -> str:
    """Runs of raised (or lowered) characters as one `^{...}` (or `_{...}`)."""
    parts: list[str] = []
    run = ""
    for c in [*text, ""]:
        if c and unicodedata.decomposition(c).startswith(kind) and c not in "ªº":
            run += unicodedata.normalize("NFKC", c).replace("\u2212", "-")
            continue
        parts.append(f"{sign}{{{run}}}{c}" if run else c)
        run = ""
    return "".join(parts)


def _written_out(match: re.Match) -> str:
    """`1.5e3` as `1500.0`, `5e-05` as `0.00005`; beyond all floats as a product with a power of ten."""
    digits, exponent = match.groups()
    if len(exponent) > 4 or abs(int(exponent)) > MAX_EXPONENT:
        return rf"{digits} \cdot 10^{{{exponent}}}"
    value = format(Decimal(f"{digits}e{exponent}"), "f")
    return value if "." in value else f"{value}.0"  # a decimal like every number that is written so


def _as_fraction(match: re.Match) -> str:
    r"""Write a repeating decimal as a fraction: `0.1\overline{6}` as `\frac{15}{90}`."""
    whole, fixed, repeated = match.groups()
    top = int(whole + fixed + repeated) - int(whole + fixed or "0")
    return rf"\frac{{{top}}}{{{10 ** len(fixed) * (10 ** len(repeated) - 1)}}}"
