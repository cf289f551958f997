"""What the source may not contain (SERVING-CHECKLIST section 10): code made from bytes, and regular expressions that
somebody has not looked at."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src" / "penstock").rglob("*.py"))

FORBIDDEN_MODULES = {
    "pickle", "cPickle", "_pickle", "cloudpickle", "dill", "marshal", "shelve", "jsonpickle", "joblib", "pdb", "code",
}  # fmt: skip
"""Their loaders run what the bytes say."""
FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_ATTRIBUTES = {
    "torch.load", "torch.save", "torch.jit.load", "numpy.load", "np.load", "yaml.load", "yaml.unsafe_load",
    "yaml.full_load", "os.system", "os.popen", "pandas.read_pickle", "pd.read_pickle",
}  # fmt: skip
UNSAFE_LOADERS = {"yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader", "yaml.CLoader", "yaml.CUnsafeLoader"}
"""They make any object that a file names."""
MODEL_CODE = {"trust_remote_code"}
"""Names of switches that would run code of a model repository."""
MADE_HERE = {
    "src/penstock/compiled/build.py": {"compile"},
    "src/penstock/catalog/hardware_load.py": {"yaml.load"},
}
"""What is allowed where: code that this source tree itself has made; YAML through the safe loader that is in C."""


def trees() -> Iterator[tuple[str, ast.Module]]:
    for file in SOURCES:
        yield str(file.relative_to(ROOT)), ast.parse(file.read_text(encoding="utf-8"))


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def offences(name: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        where = f"{name}:{getattr(node, 'lineno', 0)}"
        if isinstance(node, ast.Import):
            yield from (
                f"{where} import {one.name}" for one in node.names if one.name.split(".")[0] in FORBIDDEN_MODULES
            )
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN_MODULES:
            yield f"{where} from {node.module}"
        elif isinstance(node, ast.Attribute) and dotted(node) in UNSAFE_LOADERS:
            yield f"{where} {dotted(node)}"
        elif isinstance(node, ast.Call):
            called = dotted(node.func)
            if called in FORBIDDEN_CALLS and called not in MADE_HERE.get(name, set()):
                yield f"{where} {called}()"
            allowed = called in MADE_HERE.get(name, set()) or _plain_numpy(node, called)
            if called in FORBIDDEN_ATTRIBUTES and not allowed:
                yield f"{where} {called}()"
            for keyword in node.keywords:
                if keyword.arg in MODEL_CODE or (keyword.arg == "allow_pickle" and not _is(keyword.value, False)):
                    yield f"{where} {keyword.arg}="
                if keyword.arg == "shell" and not _is(keyword.value, False):
                    yield f"{where} shell="


def _plain_numpy(node: ast.Call, called: str) -> bool:
    explicit = any(one.arg == "allow_pickle" and _is(one.value, False) for one in node.keywords)
    return called in ("np.load", "numpy.load") and explicit


def _is(node: ast.expr, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def test_nothing_turns_bytes_into_code() -> None:
    found = [one for name, tree in trees() for one in offences(name, tree)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "bad",
    [
        "import pickle", "from pickle import loads", "import dill as d", "eval(x)", "exec(x)", "torch.load(f)",
        "np.load(f)", "np.load(f, allow_pickle=True)", "yaml.load(f)", "load(p, trust_remote_code=True)",
        "os.system(x)", "subprocess.run(x, shell=True)", "import marshal", "class A(yaml.Loader): pass",
    ],
)  # fmt: skip
def test_the_rule_sees_what_it_forbids(bad: str) -> None:
    assert list(offences("x.py", ast.parse(bad)))


@pytest.mark.parametrize(
    "good", ["np.load(f, allow_pickle=False)", "yaml.safe_load(f)", "re.compile(x)", "model.eval()"]
)
def test_the_rule_lets_the_safe_forms_be(good: str) -> None:
    assert not list(offences("x.py", ast.parse(good)))


# -- regular expressions -----------------------------------------------------------------------------------------------

FUNCTIONS = {"compile", "match", "fullmatch", "search", "sub", "subn", "split", "findall", "finditer"}
ROOMS = ("serve", "engine", "runtime", "observe")
"""Rooms that see what clients and models write."""


def patterns() -> Iterator[tuple[str, int, str | None]]:
    """Each use of `re` in these rooms: file, line and pattern; None for one that is put together at run time."""
    for name, tree in trees():
        if name.split("/")[2] not in ROOMS:
            continue
        for node in ast.walk(tree):
            called = dotted(node.func) if isinstance(node, ast.Call) else ""
            if isinstance(node, ast.Call) and called.startswith("re.") and called.removeprefix("re.") in FUNCTIONS:
                first = node.args[0]
                known = first.value if isinstance(first, ast.Constant) else None
                text = known.decode("latin-1") if isinstance(known, bytes) else known
                yield name, node.lineno, text if isinstance(text, str) else None


DYNAMIC = {
    "src/penstock/engine/tokenizer.py": "alternatives of escaped literals: the spellings of control tokens",
    "src/penstock/engine/chat_template.py": "alternatives of escaped literals: the spellings of control tokens",
    "src/penstock/runtime/adapters.py": "a constant of deployment/serving.py: one class, repeated 64 times at most",
}
"""Patterns put together at run time, and why they are linear."""


CATEGORIES = {
    "CATEGORY_SPACE": r"\s", "CATEGORY_NOT_SPACE": r"\S", "CATEGORY_DIGIT": r"\d", "CATEGORY_NOT_DIGIT": r"\D",
    "CATEGORY_WORD": r"\w", "CATEGORY_NOT_WORD": r"\W",
}  # fmt: skip


def ambiguous(pattern: str) -> list[str]:
    """Where a backtracking matcher could split one text in several ways: what makes it worse than linear.

    A repeat without bound inside another repeat, or two repeats without bound next to each other whose characters
    overlap, or one that a search begins with; each of those is a polynomial or an exponential. Read from the parsed
    pattern, on the safe side.
    """
    from re import _parser as parser  # type: ignore[attr-defined]

    found: list[str] = []

    def unbounded(item: object) -> bool:
        return item[0] in REPEATS and item[1][1] >= 1024  # type: ignore[index]

    def walk(items: object, inside: bool) -> None:
        before: object | None = None
        for item in items:  # type: ignore[attr-defined]
            kind, argument = item
            if kind in REPEATS:
                if unbounded(item):
                    if inside:
                        found.append(f"a repeat in a repeat in {pattern!r}")
                    if before is not None and overlap(first(before), first(argument[2])):
                        found.append(f"two repeats that overlap in {pattern!r}")
                    before = argument[2]
                walk(argument[2], inside or unbounded(item))
                continue
            if kind is parser.SUBPATTERN:
                walk(argument[3], inside)
            elif kind is parser.BRANCH:
                for branch in argument[1]:
                    walk(branch, inside)
            elif kind in (parser.ASSERT, parser.ASSERT_NOT):
                walk(argument[1], inside)
                continue
            if kind is not parser.AT:
                before = None

    REPEATS = (parser.MAX_REPEAT, parser.MIN_REPEAT)

    def first(items: object) -> list[object]:
        return list(items)[:1]  # type: ignore[call-overload]

    def overlap(one: list[object], other: list[object]) -> bool:
        return any(matches(one, letter) and matches(other, letter) for letter in map(chr, range(256)))

    def matches(items: list[object], letter: str) -> bool:
        if not items:
            return True
        kind, argument = items[0]  # type: ignore[misc]
        if kind is parser.LITERAL:
            return chr(argument) == letter
        if kind is parser.NOT_LITERAL:
            return chr(argument) != letter
        if kind is parser.IN:
            negate = bool(argument) and argument[0][0] is parser.NEGATE
            inside = any(
                (what is parser.LITERAL and chr(value) == letter)
                or (what is parser.RANGE and value[0] <= ord(letter) <= value[1])
                or (what is parser.CATEGORY and re.fullmatch(CATEGORIES[str(value)], letter) is not None)
                for what, value in argument
            )
            return inside != negate
        return True

    parsed = parser.parse(pattern)
    if parsed and unbounded(parsed[0]):
        found.append(f"a search would begin with a repeat in {pattern!r}")
    walk(parsed, False)
    return found


def test_no_regular_expression_near_user_or_model_text_can_backtrack() -> None:
    seen = list(patterns())
    assert len(seen) > 5
    bad = []
    for name, line, pattern in seen:
        if pattern is None:
            if name not in DYNAMIC:
                bad.append(f"{name}:{line} a pattern made at run time: say in DYNAMIC why it is linear")
        else:
            bad += [f"{name}:{line} {why}" for why in ambiguous(pattern)]
    assert not bad, "\n".join(bad)


@pytest.mark.parametrize("pattern", [r"(a+)+", r"(a*)*b", r"(?:\s*x*)*", r"a*a*", r"\d+\d+x", r"(a|b+)+", r".*.*x"])
def test_the_judge_knows_the_shapes_that_explode(pattern: str) -> None:
    assert ambiguous(pattern)


@pytest.mark.parametrize(
    "pattern", [r"[a-z]{1,64}", r":[a-z]+[0-9]+", r"xa+b+", r"<[|].+[|]>\Z", r"(?:\.[0-9]{1,3}){3}"]
)
def test_the_judge_lets_linear_shapes_be(pattern: str) -> None:
    assert not ambiguous(pattern)
    assert re.compile(pattern)
