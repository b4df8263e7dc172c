"""Templates render exactly what the original code rendered, and the choice among them says why."""

import json
from pathlib import Path

import pytest

from llava_core.conversation import TEMPLATES, TemplateFacts, choose_template, render, template_named
from llava_core.errors import BadRequest

RECORDED = json.loads((Path(__file__).parent / "fixtures" / "prompts.json").read_text())


@pytest.mark.parametrize("name", RECORDED)
def test_a_template_renders_what_the_original_code_rendered(name: str) -> None:
    checked = 0
    for conversation in RECORDED[name]["conversations"]:
        if "prompt" in conversation:
            turns = [(m["role"], m["text"]) for m in conversation["messages"]]
            assert render(TEMPLATES[name], turns) == conversation["prompt"]
            checked += 1
    assert checked
    assert TEMPLATES[name].stop == RECORDED[name]["stop"] or name == "plain"


@pytest.mark.parametrize("name", [name for name in TEMPLATES if name != "plain"])
def test_an_open_answer_goes_on_where_it_stood(name: str) -> None:
    template = TEMPLATES[name]
    asked = render(template, [("user", "Count.")])
    going_on = render(template, [("user", "Count."), ("assistant", "One, two")], continue_final=True)
    assert going_on.startswith(asked)
    assert going_on.removeprefix(asked).strip() == "One, two"
    assert going_on == render(template, [("user", "Count."), ("assistant", "One, two"), ("user", "x")])[: len(going_on)]


def test_a_system_message_takes_the_place_of_the_default_one() -> None:
    prompt = render(TEMPLATES["chatml_direct"], [("user", "Hi")], system="Be brief.")
    assert prompt.startswith("<|im_start|>system\nBe brief.<|im_end|>")
    assert "<<SYS>>\nBe brief.\n<</SYS>>" in render(TEMPLATES["mistral_instruct"], [("user", "Hi")], system="Be brief.")


@pytest.mark.parametrize(
    ("facts", "name"),
    [
        (TemplateFacts(model_type="llava_mistral", folder="vicuna"), "mistral_instruct"),
        (TemplateFacts(model_type="llava_mpt"), "mpt"),
        (TemplateFacts("llava_llama", chat_tokens=frozenset({"<|im_start|>", "<|im_end|>"})), "chatml_direct"),
        (TemplateFacts("llava_llama", bases=("NousResearch/Nous-Hermes-2-Yi-34B",)), "chatml_direct"),
        (TemplateFacts("llava_llama", bases=("lmsys/vicuna-7b-v1.5",)), "llava_v1"),
        (TemplateFacts("llava_llama", bases=("meta-llama/Llama-2-13b-chat-hf",)), "llava_llama_2"),
        (TemplateFacts("llava_llama", start_end_tokens=True, folder="anything-v1"), "llava_v0"),
        (TemplateFacts("llava_llama", bases=("vicuna-13b-v1.1",), start_end_tokens=True), "llava_v1"),
        (TemplateFacts("llava_llama", folder="llava-v1.6-34b"), "chatml_direct"),
        (TemplateFacts("llava_llama", folder="my-model"), "llava_v1"),
    ],
)
def test_facts_come_before_the_folder_name(facts: TemplateFacts, name: str) -> None:
    template, reason = choose_template(facts)
    assert template.name == name
    assert reason


def test_what_was_asked_for_wins_and_an_unknown_name_lists_the_known_ones() -> None:
    assert choose_template(TemplateFacts("llava_mistral"), asked="plain")[0].name == "plain"
    with pytest.raises(BadRequest, match="llava_v1"):
        template_named("llava_v9")
