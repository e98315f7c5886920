"""Where the sentences of a text begin: a few rules, no model, linear time on any text."""

from __future__ import annotations

import re

_END = re.compile(
    r"""
      (?P<mark>[.!?…‽؟।]++ ["'”’»)\]}*_]*+) (?P<space>\s*+)   # a full stop, what closes after it, space
    | (?P<wide>[。！？｡]++ [」』”’）]*+ \s*+)                    # these need no space after them
    | \n \s*+                                                  # a line's end
    """,
    re.VERBOSE,
)
# What a full stop shortens without ending a sentence: a single letter, or one of these words. Those that
# often end a sentence too, such as "etc." and "no.", are left out.
_ABBREVIATION = re.compile(
    r"""
    (?<!\w) (?: [^\W\d_]
    | mr | mrs | ms | dr | prof | rev | hon | sen | rep | gov | gen | col | capt | lt | sgt | st | jr | sr
    | vs | cf | ca | approx | al | viz | nr | vol | figs? | eqs? | sec | ch | pp | eds? | mt | ft
    | dept | jan | feb | mar | apr | jun | jul | aug | sept? | oct | nov | dec
    ) \Z
    """,
    re.VERBOSE | re.IGNORECASE,
)
# Enough of a text before its full stop to hold any abbreviation.
_LOOK_BACK = 24


def sentence_starts(text: str) -> list[int]:
    """Return the characters at which sentences begin; the first is 0, unless the text is empty.

    A sentence ends after `.`, `!`, `?` or their like with space after it, and what closes between them;
    not where the next word begins in lower case, nor after a known abbreviation or a single letter
    ("J. Smith"). It ends at a line's end too, unless the next line goes on in lower case. Space belongs
    to the sentence before it.
    """
    starts = [0] if text else []
    for match in _END.finditer(text):
        start = match.end()
        if start < len(text) and _ends_sentence(text, match):
            starts.append(start)
    return starts


def _ends_sentence(text: str, match: re.Match[str]) -> bool:
    mark = match["mark"]
    if match["wide"]:
        return True
    if mark and not match["space"]:  # 3.14, example.org
        return False
    if match[0].count("\n") > 1:  # an empty line
        return True
    return not text[match.end()].islower() and not (mark == "." and _shortened(text, match.start()))


def _shortened(text: str, end: int) -> bool:
    """Whether a full stop at `end` shortens the word before it."""
    return _ABBREVIATION.search(text, max(0, end - _LOOK_BACK), end) is not None
