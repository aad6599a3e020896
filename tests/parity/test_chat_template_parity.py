"""Chat templates, rendered by the runtime and by transformers."""

from __future__ import annotations

import pytest
from helpers import CHECKPOINTS
from onnx_vlm.graphs import InputError
from onnx_vlm.runtime.text.chat_template import Template
from transformers.utils.chat_template_utils import render_jinja_template

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": '<b> it\'s & é, "2" > 1'}],
        "extra": {"z": 1, "a": [None, True, 0.5], "m": "é"},
    },
    {"role": "assistant", "content": [{"type": "text", "text": "yes"}], "thinking": "hm"},
]
TEMPLATES = {
    "tojson": "{{ messages | tojson }}",
    "tojson with indent": "{{ messages[1].extra | tojson(indent=2) }}",
    "tojson with its other options": (
        "{{ messages[1].extra | tojson(ensure_ascii=true, sort_keys=true, separators=(',', ':')) }}"
    ),
    "generation": (
        "{% for m in messages %}{% generation %}{{ m.role }}{% set x = m.role %}{% endgeneration %}{{ x }}{% endfor %}"
    ),
    "generation trimmed": "a {%- generation -%} b {%- endgeneration -%} c",
    "tools": "{{ tools is none }} {{ documents is none }} {{ tools is defined }} {% if tools %}x{% endif %}.",
    "loop controls": (
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m.role }}{% break %}{% endfor %}"
    ),
    "blocks trimmed": "  {% if true %}\n  a\n  {% endif %}\nb\n",
    "year": "{{ strftime_now('%Y-%m') }}",
    "namespace": "{% set n = namespace(a=1) %}{% for m in messages %}{% set n.a = n.a + 1 %}{% endfor %}{{ n.a }}",
    "dict": "{{ dict(a=1) }} {{ dict.fromkeys(['x', 'y'], 2) }}",
    "special tokens": "{{ bos_token }}{{ eos_token }}{{ no_token }}{{ add_generation_prompt }}",
    "strings": "{{ messages[1].role.upper() }} {{ '%s!' % messages[0].role }} {{ '{:>8}'.format('a') }} {{ 'a' ~ 2 }}",
    "arithmetic": "{{ 7 // 2 }} {{ 7 % 4 }} {{ 2 ** 10 }} {{ 'ab' * 3 }} {{ [1] + [2] }} {{ -3 | abs }}",
    "filters": (
        "{{ messages | map(attribute='role') | join(',') }} {{ messages | selectattr('role', 'eq', 'user') | list }}"
        " {{ ' x ' | trim }} {{ messages[0].content | replace('.', '!') | upper }} {{ missing | default('d') }}"
        " {{ '%05d' | format(7) }} {{ messages | length }} {{ [3, 1] | sort | first }} {{ 'a b' | title }}"
    ),
    "macros": "{% macro f(x, y=2) %}<{{ x }}{{ y }}>{% endmacro %}{{ f(1) }}{{ f(1, y=3) }}",
    "tests": "{{ messages[0].content is string }} {{ messages[1].content is iterable }} {{ 1 is none }}",
    "reasoning": "{{ messages[2].reasoning_content }} {{ messages[2].thinking }}",
    "no escapes": "{{ messages[1].content[1].text }}",
    "caller": "{% macro w() %}[{{ caller() }}]{% endmacro %}{% call w() %}in{% endcall %}",
    "recursive loop": "{% for x in [[1, [2]], 3] recursive %}{{ loop(x) if x is iterable else x }},{% endfor %}",
    "trained": (CHECKPOINTS / "perception_lm" / "chat_template.jinja").read_text(),
}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_are_rendered_as_transformers_renders_them(name: str):
    source = TEMPLATES[name]
    (theirs,), _ = render_jinja_template([MESSAGES], chat_template=source, add_generation_prompt=True, **TOKENS)
    assert Template(source, TOKENS).render(MESSAGES) == theirs


@pytest.mark.parametrize(
    "source", ["{{ raise_exception('no') }}", "{{ tools[0] }}{{ none.x.y }}", "{{ messages.append(1) }}", "{{ 1 / 0 }}"]
)
def test_what_transformers_cannot_render_is_refused(source: str):
    with pytest.raises(Exception, match=r".+"):
        render_jinja_template([MESSAGES], chat_template=source, add_generation_prompt=True)
    with pytest.raises(InputError, match="cannot write this conversation"):
        Template(source, {}).render(MESSAGES)
