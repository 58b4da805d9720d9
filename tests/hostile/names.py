"""Names that would be a path, code, markup or an order to a terminal if anything took them for more than text."""

from __future__ import annotations

NAMES: dict[str, str] = {
    "a file above": "../victim",
    "an absolute path": "/etc/passwd",
    "a path": "a/b",
    "a path of Windows": "..\\victim",
    "the folder above": "..",
    "the folder itself": ".",
    "nothing": "",
    "a null": "evil\0b",
    "a second line": "evil\nimport os",
    "an ended line": "evil\n",
    "a carriage return": "evil\rimport os",
    "a line separator": "evil\u2028import os",
    "a reversed text": "\u202eevil",
    "an escape of terminals": "\x1b[2Jevil",
    "half a character": "evil\udc80",
    "an ended text": "'; raise SystemExit #",
    "an ended docstring": '"""',
    "an expression of Jinja": "{{ 7*7 }}",
    "a statement of Jinja": "{% include 'x' %}",
    "a field of a format": "{0.__class__}",
    "an element of HTML": "<script>alert(1)</script>",
    "a style of rich": "[bold]evil[/bold]",
    "an encoded letter": "%41",
    "5000 letters": "a" * 5000,
    "a device of Windows": "CON",
    "a command": "$(touch x)",
    "an older command": "`touch x`",
    "an option": "--storage=x",
}
"""The hostile names, each by what it would be taken for."""
