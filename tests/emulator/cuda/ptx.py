"""Inline PTX to C++: `asm(...)` statements become calls of functions of `device/ptx.h`.

An asm block may hold several instructions, its own registers, predicates and labels. What each
instruction means is one row of `instructions.INSTRUCTIONS`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import count

from tests.emulator.cuda.instructions import CPP_TYPES, SPECIAL_REGISTERS, Operand, render

_ASM = re.compile(r"\b(?:asm|__asm__)\s*(?:volatile|__volatile__)?\s*\(")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_BOUND = re.compile(r'\s*(?:\[\w+\]\s*)?"[^"]*"\s*\((.*)\)\s*$', re.S)
_REGISTER = re.compile(r"\.reg\s*\.(\w+)\s+(.*)", re.S)
_LABEL = re.compile(r"\s*([\w$]+):(?!:)")
_GUARD = re.compile(r"@(!?)\s*(\S+)\s+")
_FLOAT = re.compile(r"0[fF]([0-9a-fA-F]{8})")


def replace_asm(source: str) -> str:
    """Replace every asm statement of a translation unit."""
    done, position, blocks = [], 0, count()
    for match in _ASM.finditer(source):
        if match.start() < position:
            continue
        end = _closing(source, match.end())
        parts = split(source[match.end() : end], ":")
        text = "".join(_STRING.findall(parts[0])).replace("\\n", "\n").replace("\\t", " ")
        bound = [
            found[1].strip()
            for part in parts[1:3]
            for operand in split(part, ",")
            if (found := _BOUND.match(operand))
        ]
        done += [source[position : match.start()], _block(text, bound, next(blocks))]
        position = end + 1
    return "".join(done) + source[position:]


def _closing(text: str, start: int) -> int:
    """Return where the parenthesis that is open at ``start`` closes, strings skipped."""
    depth, at, quoted = 1, start, False
    while True:
        letter = text[at]
        if quoted and letter == "\\":
            at += 1
        elif letter == '"':
            quoted = not quoted
        elif not quoted:
            depth += (letter == "(") - (letter == ")")
        if not depth:
            return at
        at += 1


def split(text: str, separator: str) -> list[str]:
    """Split at a separator outside of brackets and strings."""
    parts, depth, quoted, begin, at = [], 0, False, 0, 0
    while at < len(text):
        letter = text[at]
        if quoted and letter == "\\":
            at += 1
        elif letter == '"':
            quoted = not quoted
        elif not quoted:
            depth += (letter in "([{") - (letter in ")]}")
            if letter == separator and depth == 0:
                parts.append(text[begin:at])
                begin = at + 1
        at += 1
    return [*parts, text[begin:]]


def _block(text: str, bound: list[str], number: int) -> str:
    """Translate the text of one asm statement; ``bound`` are the expressions of %0, %1, ..."""
    text = re.sub(r"//[^\n]*", "", text)
    lines = [line for s in _statements(text) for line in _statement(s, bound, number)]
    return "do { " + " ".join(lines) + " } while (0)"


def _statements(text: str) -> Iterator[str]:
    """Yield labels, braces of scopes and instructions."""
    for piece in split_statements(text):
        rest = piece.strip()
        while rest:
            if label := _LABEL.match(rest):
                yield label[1] + ":"
                rest = rest[label.end() :].strip()
            elif rest[0] in "{}":
                yield rest[0]
                rest = rest[1:].strip()
            else:
                yield rest
                rest = ""


def split_statements(text: str) -> list[str]:
    """Split at semicolons; braces of vectors hold none."""
    return text.split(";")


def _statement(text: str, bound: list[str], number: int) -> Iterator[str]:
    if text in "{}":
        yield text
    elif text.endswith(":"):
        yield f"emu_{number}_{text[:-1]}:;"
    elif register := _REGISTER.match(text):
        names = (name.strip().lstrip("%") for name in register[2].split(","))
        yield f"{CPP_TYPES[register[1]]} {', '.join(names)};"
    else:
        guard = _GUARD.match(text)
        code = _instruction(text[guard.end() :] if guard else text, bound, number)
        if guard:
            yield f"if ({guard[1]}{_name(guard[2], bound)})"
        yield "{ " + code + "; }"


def _instruction(text: str, bound: list[str], number: int) -> str:
    opcode, _, rest = text.strip().partition(" ")
    operands = [_operand(o, bound) for word in split(rest, ",") for o in _alternatives(word)]
    if opcode in ("bra", "bra.uni"):
        return f"goto emu_{number}_{rest.strip()}"
    return render(opcode, [o for o in operands if o], " ".join(text.split()))


def _alternatives(word: str) -> list[str]:
    """Split ``value|predicate``, two results."""
    return word.split("|") if "[" not in word else [word]


def _operand(word: str, bound: list[str]) -> Operand:
    """Return a C++ expression, or several of a vector or of an address with coordinates."""
    word = word.strip()
    if word.startswith("{"):
        return tuple(_name(w, bound) for w in split(word[1:-1], ","))
    if not word.startswith("["):
        return (_name(word, bound),) if word else ()
    first, *rest = split(word[1:-1], ",")
    base, sign, offset = first.strip().partition("+")
    address = f"ptx::address({_name(base, bound)}{', ' + offset if sign else ''})"
    more = [expression for w in rest for expression in _operand(w, bound)]
    return (address, *more)


def _name(word: str, bound: list[str]) -> str:
    """Return the expression of a register, a bound operand or a number."""
    word = word.strip().replace("%%", "%")
    if word == "_":
        return "ptx::sink"
    if re.fullmatch(r"%\d+", word):
        return f"({bound[int(word[1:])]})"
    if word in SPECIAL_REGISTERS:
        return SPECIAL_REGISTERS[word]
    if number := _FLOAT.fullmatch(word):
        return f"0x{number[1]}u"
    return word.lstrip("%")
