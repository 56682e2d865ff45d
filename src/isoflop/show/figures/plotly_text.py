"""Texts for plotly, which reads HTML, `%{…}` and MathJax in them: every text goes through here."""

from __future__ import annotations


def escaped(text: str) -> str:
    """A text that plotly shows as it is, whatever it holds.

    >>> escaped('<a href="javascript:x">%{x}$y$</a>')
    '&lt;a href="javascript:x"&gt;&#37;{x}&#36;y&#36;&lt;/a&gt;'
    """
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("%", "&#37;"), ("$", "&#36;")):
        text = text.replace(character, entity)
    return text
