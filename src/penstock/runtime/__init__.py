"""DRIVES: connects control, which decides, with an executor, which computes.

Read `local.py` first: clock + replica + executor, the loop. Then `worker.py`, which runs that loop in a process of its
own, and `service.py`, which the front end holds: requests in, tokens out. `supervisor.py` puts a new worker in the
place of one that died, `wire.py` is what the two say to each other, `build.py` makes a worker's engine from a
deployment, and `offline.py` does without processes.

The front end needs four things of the engine that are free of torch. They are handed on from here, and loaded on use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from penstock.engine.chat_template import ChatTemplate as ChatTemplate
    from penstock.engine.detokenizer import Detokenizer as Detokenizer
    from penstock.engine.guide import grammar as grammar
    from penstock.engine.tokenizer import Tokenizer as Tokenizer

_FROM_ENGINE: Final = {
    "ChatTemplate": "penstock.engine.chat_template",
    "Detokenizer": "penstock.engine.detokenizer",
    "Tokenizer": "penstock.engine.tokenizer",
}

_MODULES: Final = {"grammar": "penstock.engine.guide.grammar"}

__all__ = ["ChatTemplate", "Detokenizer", "Tokenizer", "grammar", "load_tokenizer"]


def load_tokenizer(path: str) -> Tokenizer:
    """The tokenizer of the checkpoint in directory `path`. Raises UnsupportedModel."""
    tokenizer: Tokenizer = import_module(_FROM_ENGINE["Tokenizer"]).Tokenizer.load(path)
    return tokenizer


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(_MODULES[name])
    if name not in _FROM_ENGINE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_FROM_ENGINE[name]), name)
