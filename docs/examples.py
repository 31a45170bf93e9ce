"""For the reference: `Example:` in a docstring opens a section of code, as `Examples:` does."""

import re
from typing import Any

from griffe import Extension, Object


class Examples(Extension):
    """Renames the section, whose doctests are shown as prose otherwise."""

    def on_object(self, *, obj: Object, **kwargs: Any) -> None:
        """Of every module, class, function and attribute that is read."""
        del kwargs
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", text, flags=re.MULTILINE)
