"""Texts as the index stores them, and queries as SQLite's FTS5 understands them.

FTS5 finds words, and scripts without spaces have none. Therefore an invisible separator surrounds
each of their characters, and a word of several characters is a phrase.
"""

from __future__ import annotations

import re

SEPARATOR = "\u2063"
_UNSPACED_SCRIPTS = (
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\u1780-\u17ff"  # Burmese, Khmer
    "\u3040-\u30ff\u31f0-\u31ff"  # Hiragana, Katakana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\uac00-\ud7af"  # Hangul
)
_UNSPACED = re.compile(f"([{_UNSPACED_SCRIPTS}])")
_TERM = re.compile(r'"([^"]*)"|([^\s"]+)')
MIN_PREFIX = 2
"""The last word of a query is also the beginning of a word if it has this many characters."""


def separated(text: str) -> str:
    """*text* with separators around the characters of scripts without spaces."""
    return _UNSPACED.sub(rf"{SEPARATOR}\1{SEPARATOR}", text)


def joined(text: str) -> str:
    """The original text of :func:`separated`."""
    return text.replace(SEPARATOR, "")


def scope_of(app_name: str) -> str:
    """The word of the index that all texts of an app have."""
    return f"x{app_name.encode().hex()}"


def match_expression(app_name: str, query: str) -> str | None:
    """The FTS5 expression that finds all words and ``"phrases"`` of *query* in an app's texts.

    Returns:
        None if the query has no word.
    """
    phrases = []
    for quoted, word in _TERM.findall(query.replace("\0", " ")):
        text = separated(quoted or word)
        if not any(map(str.isalnum, text)):
            continue
        is_prefix = word and len(word) >= MIN_PREFIX and not text.endswith(SEPARATOR)
        phrases.append(f'said : "{text}"' + (" *" if is_prefix else ""))
    if not phrases:
        return None
    # Only the last word may be incomplete; the user may still be writing it.
    phrases[:-1] = [phrase.removesuffix(" *") for phrase in phrases[:-1]]
    return " AND ".join([f'scope : "{scope_of(app_name)}"', *phrases])
