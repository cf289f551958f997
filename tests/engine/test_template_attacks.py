"""A chat template gets no further than its sandbox: the known ways out of Jinja, and the known bombs."""

from __future__ import annotations

import time

import jinja2
import pytest

from penstock.catalog import resolve_model
from penstock.engine.chat_template import ChatTemplate
from penstock.engine.template_sandbox import MAX_SECONDS, TemplateSandbox
from penstock.engine.tokenizer import Tokenizer
from penstock.errors import InvalidDeployment, InvalidRequest

CONVERSATION = [{"role": "user", "content": "gate"}]

WAYS_OUT = (
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''|attr('__class__')|attr('__mro__') }}",
    "{{ ''|attr('__cl'~'ass__') }}",
    "{{ ''['__class__'] }}",
    "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "{{ cycler.__init__.__globals__.os.system('id') }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.environment }}",
    "{{ '{0.__class__.__mro__}'.format('') }}",
    "{{ '{a.__class__}'.format_map({'a':''}) }}",
    "{{ ('{0.__class__}'|attr('format'))('') }}",
    "{% set f = '{0.__class__.__init__}'.format %}{{ f('') }}",
    "{{ strftime_now.__globals__ }}",
    "{{ raise_exception.__globals__ }}",
    "{% for i in [1] %}{{ loop.__class__ }}{% endfor %}",
    "{% macro f() %}{% endmacro %}{{ f.__globals__ }}",
    "{% macro f() %}{% endmacro %}{{ f._environment }}{{ f._func.__globals__ }}",
    "{% macro f() %}{{ caller._func }}{% endmacro %}{% call f() %}{% endcall %}",
    "{% include '/etc/passwd' %}",
    "{% import '/etc/passwd' as x %}",
    "{% extends 'x' %}",
    "{{ messages.append(1) }}",
    "{{ messages[0].update({'a':1}) }}",
    "{{ messages.pop() }}",
)
"""Attribute walks to classes and globals, formats that walk for them, files, and changes to what the server holds."""

NEST = (
    "{% set a=[0]*300 %}{% set b=[a]*300 %}{% set c=[b]*300 %}{% set e=[0]*300 %}{% set f=[e]*300 %}{% set d=[f]*300 %}"
)
"""Two lists that show 27 million numbers each, and hold 900 references."""
DEEP = "{% set ns=namespace(x=()) %}{% for i in range(60) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}"

BOMBS = (
    "{{ range(10**9)|list }}",
    "{{ 'a'*10**9 }}",
    "{{ [0]*10**9 }}",
    "{% set x='a'*1000000 %}{% set y=[x]*1000000 %}{{ y|join }}",
    "{{ 2**-9999999 }}",
    "{{ 1.__lshift__(10**9) }}",
    "{% set ns=namespace(x=3) %}{% for i in range(60) %}{% set ns.x = ns.x*ns.x %}{% endfor %}{{ ns.x }}",
    "{{ 'a'.ljust(10**10) }}",
    "{{ 'a'|center(10**10) }}",
    "{{ 'a'.zfill(10**10) }}",
    "{{ 'a\nb'|indent(10**10) }}",
    "{{ '%*d' % (10**10, 1) }}",
    "{{ '{:>9999999999}'.format(1) }}",
    "{{ '%9999999999d'|format(1) }}",
    "{{ '\t'.expandtabs(10**10) }}",
    "{% set ns=namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}",
    "{% set ns=namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
    "{% set ns=namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x|length }}",
    "{% set ns=namespace(x='aaaaaaaaaa') %}{% for i in range(12) %}{% set ns.x = ns.x.replace('a','aaaaaaaaaa') %}{% endfor %}{{ ns.x|length }}",  # noqa: E501
    "{% set ns=namespace(x='aaaaaaaaaa') %}{% for i in range(12) %}{% set ns.x = ns.x|replace('a','aaaaaaaaaa') %}{% endfor %}{{ ns.x|length }}",  # noqa: E501
    "{% set ns=namespace(x='aaaaaaaaaa') %}{% for i in range(12) %}{% set ns.x = ns.x|join('aaaaaaaaaa') %}{% endfor %}{{ ns.x|length }}",  # noqa: E501
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
    "{{ [1]|batch(10**9,'x')|list }}",
    "{{ [1]|slice(10**8)|list }}",
    "{{ range(99999)|map('string')|join(range(99999)|join)|length }}",
    "{{ [1]|tojson(indent=10**9) }}",
    "{% block a %}{{ self.a() }}{% endblock %}",
    "{{ (10**64)**64 }}",
    "{{ '{:{}}'.format('a', 10**8)|length }}",
    "{{ '{0:>{w}}'.format('a', w=10**8)|length }}",
    "{{ '{a:{b}}'.format_map({'a': 1, 'b': 10**8})|length }}",
    "{% set x='a'*1000000 %}{{ ('{0}'*1000).format(x)|length }}",
    "{% set x='a'*1000000 %}{{ ('%(a)s'*1000 % {'a': x})|length }}",
    "{% set x='a'*1000000 %}{{ ('%(a)s'*1000)|format(a=x)|length }}",
    "{% set x='a'*1000000 %}{{ ('b'*1000000).join(([x]*1000)|map('trim'))|length }}",
    "{% set x='a'*1000000 %}{{ ([x]*1000)|replace('a', 'bb')|length }}",
    "{{ ('a '*500000 ~ 'a '*500000 ~ 'a '*500000).split()|length }}",
    "{{ ([[0]*1000000]*9)|sum(start=[])|length }}",
    *(
        NEST + end
        for end in (
            "{{ c|tojson|length }}",
            "{{ c|tojson(indent=1)|length }}",
            "{{ c|string|length }}",
            "{{ c }}",
            "{{ ('a' ~ c)|length }}",
            "{{ c|join|length }}",
            "{{ ('%s' % [c])|length }}",
            "{{ '{}'.format(c)|length }}",
            "{{ c|upper|length }}",
            "{{ namespace(x=c) }}",
            "{{ {'a': c}.items() }}",
            "{{ raise_exception(c) }}",
            "{{ c == d }}",
            "{{ c in [d] }}",
            "{{ c is eq(d) }}",
            "{{ [c, d]|sort|length }}",
            "{{ [c].count(d) }}",
            "{{ {'a': c, 'b': d}.values()|list|string|length }}",
        )
    ),
    DEEP + "{{ {ns.x: 1} }}",
    DEEP + "{{ {}[ns.x] }}",
    DEEP + "{{ [ns.x]|unique|list }}",
    DEEP + "{{ {}.get(ns.x) }}",
)
"""Memory or time without end: repeats, powers, padding, doubling, joins, recursion."""


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(resolve_model("millrace"))


@pytest.mark.parametrize("source", WAYS_OUT)
def test_no_way_out_shows_anything_of_python(tokenizer: Tokenizer, source: str) -> None:
    messages = [dict(one) for one in CONVERSATION]
    try:
        shown = ChatTemplate(tokenizer, source).render(messages)
    except (InvalidRequest, InvalidDeployment):
        shown = ""
    assert shown.strip() == "", "undefined, which is shown as nothing"
    assert messages == CONVERSATION


@pytest.mark.parametrize("source", BOMBS)
def test_a_bomb_is_refused_before_it_takes_memory(tokenizer: Tokenizer, source: str) -> None:
    with pytest.raises((InvalidRequest, InvalidDeployment)):
        ChatTemplate(tokenizer, source).render(CONVERSATION)


def test_indentation_counts_before_it_is_written(tokenizer: Tokenizer) -> None:
    tool: object = [[]] * 10_000
    for _ in range(200):
        tool = [tool]
    source = "{% for one in tools %}{{ one | tojson(indent=64) }}{% endfor %}"
    with pytest.raises(InvalidRequest, match="longer than"):
        ChatTemplate(tokenizer, source).render(CONVERSATION, tools=[{"x": tool}])


def test_calls_that_multiply_are_counted_and_time_is_looked_at(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    twice = "{% macro f(n) %}{{ f(n - 1) if n }}{{ f(n - 1) if n }}{% endmacro %}{{ f(60) }}"
    with pytest.raises(InvalidRequest, match=r"turns|longer than"):
        ChatTemplate(tokenizer, twice).render(CONVERSATION)
    clock = iter(range(10**9))
    monkeypatch.setattr("penstock.engine.template_sandbox.monotonic", lambda: float(next(clock)))
    began = time.process_time()
    with pytest.raises(InvalidRequest, match=f"longer than {MAX_SECONDS:g} s"):
        ChatTemplate(tokenizer, twice).render(CONVERSATION)
    assert time.process_time() - began < MAX_SECONDS


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("{{ 'a' ~ 1 ~ none }}", "a1None"),
        ("{{ ['a', 'b'] | join(', ') }}", "a, b"),
        ("{{ 'x'.center(5) }}|{{ 'abc'[::-1] }}|{{ 'a b'.replace(' ', '--') }}", "  x  |cba|a--b"),
        ("{{ '%s is %d' % ('n', 5) }} {{ '{:>4}'.format(7) }} {{ 'v%03d' | format(7) }}", "n is 5    7 v007"),
        ("{{ [1, 2] + [3] }} {{ 'a' + 'b' }} {{ 2 ** 10 }} {{ '-' * 3 }}", "[1, 2, 3] ab 1024 ---"),
        ("{{ {'a': [1]} | tojson(indent=2) }}", '{\n  "a": [\n    1\n  ]\n}'),
        ("{{ messages | map(attribute='role') | list }}", "['user']"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "1"),
        ("{{ 'a\\nb' | indent(2) }}", "a\n  b"),
    ],
)
def test_what_templates_really_do_is_as_it_was(tokenizer: Tokenizer, source: str, text: str) -> None:
    assert ChatTemplate(tokenizer, source).render(CONVERSATION) == text


def test_the_sandbox_offers_jinjas_filters_but_the_slow_ones() -> None:
    gone = set(jinja2.Environment().filters) - set(TemplateSandbox().filters)
    assert gone == {
        "pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr", "filesizeformat", "forceescape",
    }  # fmt: skip
