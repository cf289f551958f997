"""Which format a model uses: by its chat template and its control tokens, unless the deployment says."""

from __future__ import annotations

from typing import Final

from penstock.errors import InvalidRequest
from penstock.runtime import Tokenizer
from penstock.serve.tools.bare_json import BareJson
from penstock.serve.tools.deepseek import DeepSeek, DeepSeekV31
from penstock.serve.tools.hermes import Hermes
from penstock.serve.tools.llama import Llama
from penstock.serve.tools.mistral import Mistral, MistralV11
from penstock.serve.tools.pythonic import Pythonic
from penstock.serve.tools.tool import ToolFormat

FORMATS: Final[dict[str, ToolFormat]] = {
    one.name: one
    for one in (Hermes(), MistralV11(), Mistral(), DeepSeek(), DeepSeekV31(), Pythonic(), Llama(), BareJson())
}
"""In the order in which they are asked."""


def choose(setting: str, tokenizer: Tokenizer) -> ToolFormat:
    """The format named by `setting`, or for "auto" the one that fits the model.

    Raises:
        InvalidRequest: none fits; the message lists what is there.
    """
    if setting != "auto":
        return FORMATS[setting]
    template, control = tokenizer.settings.template_text, frozenset(tokenizer.control_tokens)
    for one in FORMATS.values():
        if one.matches(template, control):
            return one
    raise InvalidRequest(
        field="tools", value="", why="this model's chat template shows no way to call tools that this server knows",
        remedy='tool_choice: "none"; or, for who runs the server, server.tool_parser: one of ' + ", ".join(FORMATS),
        code="tools_not_supported",
    )  # fmt: skip
