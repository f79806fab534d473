"""English text that comes with every CPython: the topics of `help()`."""

from __future__ import annotations

from transom.errors import DataError

__all__ = ["default_text"]


def default_text() -> str:
    """Give the text of Python's built-in help topics, about half a megabyte, in alphabetical order of their names.

    Raises:
        DataError: this Python came without them.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        what = "this Python came without its help topics, which are the default data."
        raise DataError(what, asked_by="train.data", hint="train.data: the path of a text file") from error
    return "\n\n".join(topics[name] for name in sorted(topics))
