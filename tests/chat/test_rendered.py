"""Rendered conversations read back: by known markers, and by a model's own template whatever it writes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CHATML, tiny_tokenizer

from dmoerm.chat.encoding import Encoder
from dmoerm.chat.rendered import Transcript, conversation, response_text, split_response
from dmoerm.config import EncodingConfig
from dmoerm.errors import DataError
from dmoerm.schema import Message, Query

GEMMA = "<start_of_turn>user\nHi!<end_of_turn>\n<start_of_turn>model\nHello.<end_of_turn>\n"
LLAMA3 = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHi!<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHello."
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are SmolLM.<|im_end|>\n' }}{% endif %}"
    + CHATML
)
TEMPLATES = {"ChatML": CHATML, "a default system turn": DEFAULT_SYSTEM, "Mistral": MISTRAL, "plain": None}
TALK = [
    Message(role="user", content="Hi!"),
    Message(role="assistant", content="Yes?\n\nSay it."),
    Message(role="user", content="你好 <b> 1 < 2"),
]
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<|[]\n:"), min_size=1).filter(str.strip)


def encoder(template: str | None) -> Encoder:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    return Encoder(tokenizer, EncodingConfig(template="chat" if template else "plain"))


def render(chat_encoder: Encoder, talk, response: str) -> str:
    parts = chat_encoder.template.texts(talk)
    return "".join(a + b for a, b in zip(parts, [*(m.content for m in talk), response, ""], strict=True))


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("bos", [True, False])
def test_the_own_template_reads_back_what_it_wrote(name, bos):
    chat_encoder = encoder(TEMPLATES[name])
    reader = Transcript(chat_encoder)
    text = render(chat_encoder, TALK, "Fine, and you?")
    if not bos:
        text = text.removeprefix(chat_encoder.tokenizer.bos_token)
    assert reader.read(text) == (tuple(TALK), "Fine, and you?")
    assert chat_encoder.encode(Query(prompt=reader.read(text)[0], responses=("x",))) == chat_encoder.encode(
        Query(prompt=tuple(TALK), responses=("x",))
    )
    prompt = text[: text.index("Fine, and you?")]
    assert reader.prompt(prompt) == tuple(TALK)


@settings(max_examples=40)
@given(texts, texts, texts)
def test_any_texts_read_back(question, answer, again):
    chat_encoder = encoder(CHATML)
    talk = [Message(role="user", content=question), Message(role="assistant", content=answer)]
    talk.append(Message(role="user", content=again))
    assert Transcript(chat_encoder).read(render(chat_encoder, talk, answer)) == (tuple(talk), answer)


def test_a_system_turn_reads_back_unless_it_is_the_templates_own():
    chat_encoder = encoder(DEFAULT_SYSTEM)
    reader = Transcript(chat_encoder)
    assert reader.read(render(chat_encoder, TALK, "Yes."))[0] == tuple(TALK)
    kind = [Message(role="system", content="Be kind."), *TALK]
    assert reader.read(render(chat_encoder, kind, "Yes."))[0] == tuple(kind)


def test_other_families_are_known_by_their_markers():
    reader = Transcript(encoder(CHATML))
    assert reader.read(GEMMA) == ((Message(role="user", content="Hi!"),), "Hello.")
    kind = (Message(role="system", content="Be kind."), Message(role="user", content="Hi!"))
    assert reader.read(LLAMA3) == split_response(LLAMA3) == (kind, "Hello.")
    assert conversation(LLAMA3.removesuffix("Hello.")) == kind


@pytest.mark.parametrize("text", ["", "Hello.", "<|im_start|>user\nHi!<|im_end|>\n", "[INST] Hi! [/INST] Hello."])
def test_where_no_response_begins_is_said(text):
    with pytest.raises(DataError, match=r"where the response begins|no response follows"):
        Transcript(encoder(CHATML)).read(text)


def test_a_response_is_what_follows_its_prompt():
    assert response_text("<pad>Hi!Hello.</s>", "Hi!") == "Hello.</s>"
    for prompt in ("", "Ho!"):
        with pytest.raises(DataError, match="prompt"):
            response_text("Hi!Hello.", prompt)
