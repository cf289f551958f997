"""YAML as people write it by hand, and errors that tell where and never what: the lines of a file may hold keys.

YAML's readers let the last of two equal keys win. Here that is an error: a second `server:` would take the keys of the
first one away without a word.
"""

from __future__ import annotations

import re

import yaml

_MERGE = "tag:yaml.org,2002:merge"
_QUOTED = re.compile(r"'[^']{3,}'")


class NotYaml(ValueError):
    """In words that may be shown to anybody."""


def read_yaml(text: str) -> object:
    """What a text of one document says, as plain data; None if it says nothing. Raises NotYaml."""
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        problem = _QUOTED.sub("'...'", str(error.problem or error.context))  # an alias, or a tag, may be half a key
        raise NotYaml(f"{problem}{_place(error.problem_mark or error.context_mark)}") from None
    except NotYaml:
        raise
    except yaml.YAMLError:
        raise NotYaml("it holds a character that no file of text may hold") from None
    except (ValueError, LookupError, AttributeError):  # the last two where a tag promises a truth value, or a date
        raise NotYaml("a value in it looks like a date or a number and is none") from None
    except RecursionError:
        raise NotYaml("it is nested too deeply") from None


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: dict[str, yaml.Node]) -> yaml.MappingNode:
        # Here and not where values are made of it: there what `<<` brings along has been mixed in.
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE:
                if (key.tag, key.value) in seen:
                    raise NotYaml(f"{key.value[:60]!r} stands twice in one section{_place(key.start_mark)}")
                seen.add((key.tag, key.value))
        return node


def _place(mark: yaml.Mark | None) -> str:
    return "" if mark is None else f" (line {mark.line + 1}, column {mark.column + 1})"
