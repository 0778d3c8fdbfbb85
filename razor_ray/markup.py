"""Pieces of a page: elements whose text is escaped, and numbers as text."""

from __future__ import annotations

import html

_VOID = {"img", "meta"}


class Html(str):
    """A piece of the page. Any other text that gets into a piece is escaped, whatever it is."""


def tag(name: str, /, *content: object, **attributes: object) -> Html:
    """An element with its content and attributes; what is not `Html` is escaped.

    Parameters
    ----------
    name : str
    *content
        `Html`, or anything that `str` turns into text.
    **attributes
        `class_` is class, `text_anchor` is text-anchor.

    Examples
    --------
    >>> tag("p", "1 < 2", tag("b", "&"), class_="quiet")
    '<p class="quiet">1 &lt; 2<b>&amp;</b></p>'
    """
    inside = "".join(piece if isinstance(piece, Html) else html.escape(str(piece)) for piece in content)
    listed = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_attribute(value))}"' for key, value in attributes.items()
    )
    return Html(f"<{name}{listed}>" if name in _VOID else f"<{name}{listed}>{inside}</{name}>")


def _attribute(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def percent(count: int, of: int) -> str:
    """A share in percent, to a tenth; `of` is positive.

    >>> percent(1, 8)
    '12.5 %'
    """
    return f"{100 * count / of:.1f} %"
