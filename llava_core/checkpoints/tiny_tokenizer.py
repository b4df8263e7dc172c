"""The tokenizer and chat templates of the tiny random checkpoints: byte-level BPE, trained here on a page of prose.

Two styles, after the two that image-chat checkpoints use: Vicuna's (`USER: … ASSISTANT:`, a token at the start) and
ChatML (`<|im_start|>user … <|im_end|>`, none).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 1024

# No blank after `ASSISTANT:` in either place: what the model says begins with one of its own.
_VICUNA = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT:' }}{% endif %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\\n' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_VICUNA_TEXT = (
    "{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ 'USER: ' }}"
    "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT:' }}{% endif %}"
    "{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ ' ' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
_CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ 'PICTURE' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
_CHATML_TEXT = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


@dataclass(frozen=True)
class TokenizerStyle:
    """Special tokens by the attribute names that processors look for, and the chat template around them."""

    eos: str
    pad: str
    bos: str | None
    named: tuple[tuple[str, str], ...]
    others: tuple[str, ...]
    template: str


def _vicuna(*named: tuple[str, str], template: str = _VICUNA) -> TokenizerStyle:
    return TokenizerStyle("</s>", "<pad>", "<s>", named, (), template)


def _chatml(picture: str, *named: tuple[str, str], template: str = _CHATML) -> TokenizerStyle:
    template = template.replace("PICTURE", picture)
    return TokenizerStyle("<|im_end|>", "<|endoftext|>", None, named, ("<|im_start|>",), template)


_QWEN_VL = _chatml(
    "<|vision_start|><|image_pad|><|vision_end|>",
    ("image_token", "<|image_pad|>"),
    ("video_token", "<|video_pad|>"),
    ("vision_start_token", "<|vision_start|>"),
    ("vision_end_token", "<|vision_end|>"),
)
STYLES: dict[str, TokenizerStyle] = {
    "llava": _vicuna(("image_token", "<image>")),
    "llava_next": _vicuna(("image_token", "<image>")),
    "llava_onevision": _chatml("<image>\\n", ("image_token", "<image>"), ("video_token", "<video>")),
    "internvl": _chatml(
        "<IMG_CONTEXT>\\n",
        ("start_image_token", "<img>"),
        ("end_image_token", "</img>"),
        ("context_image_token", "<IMG_CONTEXT>"),
        ("video_token", "<video>"),
    ),
    "qwen2_5_vl": _QWEN_VL,
    "qwen3_vl": _QWEN_VL,
    "llama": _vicuna(template=_VICUNA_TEXT),
    "qwen2": _chatml("", template=_CHATML_TEXT),
}


def build_tokenizer(style: TokenizerStyle) -> PreTrainedTokenizerFast:
    """The same vocabulary for every style, then its special tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_PROSE.splitlines(), trainer)
    special = [token for token in (style.pad, style.bos, style.eos) if token]
    special += [*style.others, *(token for _, token in style.named)]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    if style.bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{style.bos} $A", pair=None, special_tokens=[(style.bos, tokenizer.token_to_id(style.bos))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=style.eos,
        pad_token=style.pad,
        bos_token=style.bos,
        extra_special_tokens=dict(style.named),
        chat_template=style.template,
        padding_side="left",
        model_max_length=4096,
        clean_up_tokenization_spaces=False,
    )


def speakable_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Tokens that a random model may say and still be read: the prose's whole words and marks, no loose bytes."""
    words = {"Ġ" + word for word in re.findall(r"[A-Za-z]+", _PROSE)}
    return sorted(number for token, number in tokenizer.get_vocab().items() if token in words or token in ",.?!;:")


_PROSE = """\
A picture is worth a closer look. What is in this picture, who is in it, and where was it taken?
The photograph shows a small dog beside a red chair, and behind the chair an open window with a view of the harbour.
Two boats lie at anchor; the larger one is blue with a white stripe, the smaller one is green and needs new paint.
In the foreground a woman holds a yellow umbrella, although the sky is clear and the light is warm and bright.
There are three apples, two pears and one orange on the table, next to a cup of coffee and a folded newspaper.
The bar chart compares four years; the third bar is the tallest, the first one is about half as high.
The sign on the left says that parking is free on Sundays, and the arrow below it points to the station.
I can see a cat that sleeps on a pile of books, its tail hanging over the edge of the shelf.
Behind the house stands a row of old trees, and between the trees runs a narrow path down to the river.
How many people are standing on the bridge? I count seven: four adults and three children with bicycles.
What colour is the door? It is dark green, with a round brass handle in the middle and a number above it.
The diagram has three boxes joined by arrows: the first box leads to the second, the second leads to the third.
On the right side a man in a grey coat reads a letter while a child looks up at him and smiles.
The mountain in the background is covered with snow, but the meadow below it is already full of flowers.
This image appears to be a drawing rather than a photograph, because the lines are thick and the shadows are flat.
The receipt lists bread, milk, cheese and tea; the total at the bottom is eleven euros and forty cents.
A train waits at the platform, its doors open, and a guard with a whistle walks along the carriages.
The clock on the tower shows ten minutes past four, so the long shadows on the square tell of an afternoon.
Please describe the scene in one sentence. A market street after the rain, with wet stones and many coloured roofs.
It is not possible to read the small text under the map, but the large title names a city and a date.
Which of the two shapes is larger? The circle is larger than the square, and both are smaller than the triangle.
The plate holds rice, beans and a slice of lemon; a fork lies on the left, a knife and a spoon on the right.
Nothing in the picture tells who took it, when it was taken, or what happened before and after that moment.
The astronaut stands in front of a flag and holds her helmet under one arm; a model of a rocket is behind her.
Could you compare the first image with the second? Both show the same room, but the lamp and the carpet are new.
The water is calm, the far shore is hidden in mist, and a single bird sits on a post near the wooden boat.
If you look closely at the corner you will find a signature, written with a thin brush in brown ink.
The animal has long ears, short legs and soft fur; it is probably a rabbit, though the light makes it hard to say.
Yes, there is a mirror on the wall, and in the mirror you can see the photographer and a bright round lamp.
No, the bicycle is not in front of the shop; it leans against the fence on the other side of the street.
"""
