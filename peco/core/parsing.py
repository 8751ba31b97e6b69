"""Exceptions of parsers on texts and arrays that are damaged or edited by hand, and values in messages."""

from __future__ import annotations

import struct
import tokenize

import yaml

# ValueError: also a text that is not UTF-8, a number of thousands of digits, a date that doesn't exist.
JSON_ERRORS = (ValueError, RecursionError)
YAML_ERRORS = (yaml.YAMLError, ValueError, RecursionError, TypeError, AttributeError, OverflowError)
# Of the readers in `numpy.lib.format` (`numpy.load` would also open zips and pickles). A header is a Python literal, and its shape
# may ask for any amount of memory.
NPY_ERRORS = (
    *(OSError, ValueError, EOFError, SyntaxError, TypeError, OverflowError, MemoryError, RecursionError),
    *(tokenize.TokenError, struct.error),
)


def reason(error: BaseException) -> str:
    """The text of an exception in one line, without the name of the file; its type if it has none."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        mark = error.problem_mark
        return f"line {mark.line + 1}, column {mark.column + 1}: {' '.join(error.problem.split())}"
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.start} is not {error.encoding.upper()}"
    return " ".join(str(error).replace(' in "<unicode string>",', ",").split()) or type(error).__name__


def shown(value: object, longest: int = 100) -> str:
    """A value in a message, shortened."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or deep nesting
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= longest else f"{text[:longest]}…"
