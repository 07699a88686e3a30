"""What the Unicode database says about a character, as short answers; the answers of every task on glyphs.

Source: Python's `unicodedata` (Unicode names and categories of assigned characters are stable by Unicode's own policy).
"""

import unicodedata

SCRIPTS = {
    "LATIN": "latin",
    "GREEK": "greek",
    "CYRILLIC": "cyrillic",
    "ARMENIAN": "armenian",
    "GEORGIAN": "georgian",
    "HEBREW": "hebrew",
    "ARABIC": "arabic",
    "LAO": "lao",
    "NKO": "nko",
    "TIFINAGH": "tifinagh",
    "CANADIAN": "canadian syllabics",
    "LISU": "lisu",
    "OGHAM": "ogham",
    "COPTIC": "coptic",
}
CATEGORIES = {
    "Lu": "capital letter",
    "Lt": "capital letter",
    "Ll": "small letter",
    "Lo": "other letter",
    "Lm": "modifier",
    "Sk": "modifier",
    "Mn": "combining mark",
    "Me": "combining mark",
    "Nd": "digit",
    "No": "number",
    "Nl": "number",
    "Sm": "mathematical symbol",
    "Sc": "currency",
    "Ps": "bracket",
    "Pe": "bracket",
    "Pi": "bracket",
    "Pf": "bracket",
    "Po": "punctuation",
    "Pd": "punctuation",
    "Pc": "punctuation",
    "So": "symbol",
}
# Names tell these apart where the category (So, Sm) does not; the first that is found in the name counts.
SYMBOLS = {
    "ARROW": "arrow",
    "HARPOON": "arrow",
    "BOX DRAWINGS": "box drawing",
    "BRAILLE": "braille",
    "BLOCK": "block element",
    "QUADRANT": "block element",
    "CIRCLED": "enclosed",
    "PARENTHESIZED": "enclosed",
    "HEXAGRAM": "hexagram",
    "TRIANGLE": "geometric shape",
    "SQUARE": "geometric shape",
    "CIRCLE": "geometric shape",
    "LOZENGE": "geometric shape",
    "DIAMOND": "geometric shape",
}
DIRECTIONS = {
    "LEFT": "left",
    "LEFTWARDS": "left",
    "RIGHT": "right",
    "RIGHTWARDS": "right",
    "UP": "up",
    "UPWARDS": "up",
    "DOWN": "down",
    "DOWNWARDS": "down",
}


def name(char: str) -> str:
    """The character's Unicode name, '' if it has none."""
    return unicodedata.name(char, "")


def is_visible(char: str) -> bool:
    """Assigned, named, and neither a control, a private-use character nor a separator."""
    return unicodedata.category(char)[0] not in "CZ" and bool(name(char))


def script(char: str) -> str | None:
    """The script of a letter, e.g. 'latin'; None for what is no letter or has no script in its name."""
    if unicodedata.category(char)[0] != "L":
        return None
    return SCRIPTS.get(name(char).split()[0])


def case(char: str) -> str | None:
    """'capital' or 'small'; None for what has no case."""
    return {"Lu": "capital", "Ll": "small"}.get(unicodedata.category(char))


def accent(char: str) -> str | None:
    """What the name says behind WITH if that is one mark, 'none' for a plain letter of a cased script, else None."""
    if case(char) is None or script(char) is None:
        return None
    _, found, marks = name(char).partition(" WITH ")
    if not found:
        return "none"
    return None if " AND " in marks else marks.lower()


def base_letter(char: str) -> str | None:
    """The letter a-z of a Latin letter, accents left aside; None for others (LATIN SMALL LETTER ESH)."""
    words = name(char).partition(" WITH ")[0].split()
    if len(words) == 4 and words[0] == "LATIN" and words[2] == "LETTER" and len(words[3]) == 1:
        return words[3].lower()
    return None


def kind(char: str) -> str | None:
    """The sort of character: 'capital letter', 'digit', 'arrow', 'currency' ..."""
    category = CATEGORIES.get(unicodedata.category(char))
    if category in ("symbol", "mathematical symbol"):
        for word, symbol in SYMBOLS.items():
            if word in name(char):
                return symbol
    return category


def direction(char: str) -> str | None:
    """Where an arrow or another pointing sign points; None for what points nowhere or to several sides."""
    words = name(char).replace("-", " ").split()
    if not {"ARROW", "HARPOON", "POINTING", "ARROWS"} & set(words):
        return None
    sides = {DIRECTIONS[word] for word in words if word in DIRECTIONS}
    return sides.pop() if len(sides) == 1 else None


def description(char: str) -> str:
    """What can be read off a picture of it: 'small latin letter e with acute', 'arrow pointing left', 'digit'."""
    written, sort, side = script(char), kind(char) or "sign", direction(char)
    if written:
        mark = accent(char)
        words = [
            case(char),
            written,
            "letter",
            base_letter(char),
            f"with {mark}" if mark not in (None, "none") else None,
        ]
        return " ".join(word for word in words if word)
    return f"{sort} pointing {side}" if side else sort


FACTS = {
    "script": script,
    "case": case,
    "accent": accent,
    "base": base_letter,
    "kind": kind,
    "direction": direction,
}
