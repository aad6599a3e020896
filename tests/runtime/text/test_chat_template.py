"""Chat templates that are broken or mean harm, and messages that no template is asked to write."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from onnx_vlm.graphs import BundleError, InputError, contract, manifest
from onnx_vlm.runtime.text.chat_template import Template, conversation
from onnx_vlm.runtime.text.prompt import Prompts

MESSAGES = [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]


@pytest.mark.parametrize(
    "source", ["{% if %}", "{% generation %}", "{{ x | no_such_filter }}", "{{" * 50_000, "{{" + "(" * 5_000 + "1"]
)
def test_a_broken_template_is_found_when_it_is_loaded(source: str):
    with pytest.raises(BundleError, match="the chat template is broken"):
        Template(source, {})


def test_a_template_that_is_not_utf8_is_an_error_that_names_its_file(bundles: Callable[..., Path], tmp_path: Path):
    folder = bundles("perception_lm")
    shutil.copyfile(folder / contract.TOKENIZER, tmp_path / contract.TOKENIZER)
    (tmp_path / contract.CHAT_TEMPLATE).write_bytes(b"\xff")
    with pytest.raises(BundleError, match=r"chat_template\.jinja is not UTF-8"):
        Prompts(tmp_path, manifest.load(folder).prompt, 1)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ [1, 'a'] | sort }}", "TypeError"),
        ("{{ 'a'.index('b') }}", "ValueError"),
        ("{{ 1e300 * 1e300 }}", "too large"),
        ("{{ missing.name }}", "undefined"),
        ("{{ raise_exception('no system turns') }}", "no system turns"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{% include 'other' %}", "no loader"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|undefined"),
        ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "underscore"),
        ("{{ 10 ** 10 ** 10 }}", "larger than"),
        ("{{ 'x' * 10 ** 6 * 10 ** 6 }}", "too large"),
        ("{{ 'x' | center(99999999) }}", "larger than"),
        ("{{ 'x'.ljust(99999999) }}", "larger than"),
        ("{{ '{:99999999}'.format(1) }}", "width"),
        ("{{ '%99999999d' % 1 }}", "width"),
        ("{{ '%99999999d' | format(1) }}", "width"),
        ("{% set n = namespace(s='x') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "larger than"),
        ("{% for i in range(100001) %}x{% endfor %}", "MAX_RANGE"),
        ("", "writes nothing"),
        ("{% if false %}x{% endif %}", "writes nothing"),
    ],
)
def test_a_template_that_fails_is_an_error_that_says_why(source: str, said: str):
    template = Template(source, {})
    with pytest.raises(InputError, match=said):
        template.render(MESSAGES)


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ lipsum(n=9999999) }}",
    ],
)
def test_a_template_without_end_ends(source: str):
    template = Template(source, {})
    with pytest.raises(InputError, match="takes more than 1 seconds"):
        template.render(MESSAGES)


def test_a_template_cannot_call_what_a_message_holds():
    class Image:
        called = False

        def save(self) -> str:
            self.called = True
            return "saved"

    image = Image()
    messages = [{"role": "user", "content": [{"type": "image", "image": image}]}]
    assert Template("{{ messages[0].content[0].image }}", {}).render(messages) == "<Image>"
    with pytest.raises(InputError):
        Template("{{ messages[0].content[0].image.save() }}", {}).render(messages)
    assert not image.called


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        (None, "a text or a list of messages, not None"),
        (5, "a text or a list of messages, not 5"),
        ([None], "a role and a content, not None"),
        ([5], "a role and a content, not 5"),
        ([{"role": "user"}], "a role and a content"),
        ([{"role": "user", "content": 5}], "a text or a list of parts, not 5"),
        ([{"role": "user", "content": [{"type": ["image"]}]}], r"the type \['image'\]; known are text, image, video"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "the type 'image_url'; known are text, image, video"),
        ([{"role": "user", "content": [{}]}], "the type None; known are text, image, video"),
    ],
)
def test_messages_that_no_template_can_write_are_refused(prompt: object, said: str):
    with pytest.raises(InputError, match=said):
        conversation(prompt, images=0, videos=0)


@pytest.mark.parametrize("name", ["paligemma2", "perception_lm", "kosmos2"])
def test_text_with_a_surrogate_is_refused(bundles: Callable[..., Path], name: str):
    prompts = Prompts(bundles(name), manifest.load(bundles(name)).prompt, 1)
    with pytest.raises(InputError, match=r"the surrogate '\\udcff' at index 4"):
        prompts.ids("what\udcff")
