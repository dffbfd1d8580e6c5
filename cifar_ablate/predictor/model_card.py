"""The model card of a packaged network, written from its record."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import yaml

from cifar_ablate.analysis.sentences import count
from cifar_ablate.predictor.around import about
from cifar_ablate.predictor.card import Card
from cifar_ablate.report.formats.markdown import escape


def model_card(card: Card, *, checked: str, gradio: str | None) -> str:
    """README.md of a packaged network; ``gradio``: the version its page was made with, None without a page."""
    parts = [_front_matter(card, gradio), *_sections(card, checked, has_page=gradio is not None)]
    return "\n\n".join(parts) + "\n"


def about_page(card: Card) -> str:
    """What the page says of its network."""
    return about(card) + "\n"


def _front_matter(card: Card, gradio: str | None) -> str:
    """Fields that Hugging Face reads; see its docs on model cards and on Spaces."""
    of = card.origin
    fields: dict[str, object] = {"title": f"{of.study} {of.arm}"[:60]}
    if gradio is None:
        fields |= {"library_name": "onnx", "pipeline_tag": "image-classification", "tags": ["cifar-ablate"]}
    else:
        fields |= {"sdk": "gradio", "sdk_version": gradio, "app_file": "app.py", "python_version": _python()}
    return "---\n" + yaml.safe_dump(fields, sort_keys=False, allow_unicode=True) + "---"


def _python() -> str:
    """Where it was packaged; a Space has 3.10 where nothing is said, for which there is no recent numpy."""
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _sections(card: Card, checked: str, *, has_page: bool) -> Iterator[str]:
    of = card.origin
    yield f"# {escape(of.study)}: {escape(of.arm)}"
    if card.question:
        yield f"*{escape(card.question)}*"
    yield about(card)
    yield "## Use\n" + _use(card, has_page)
    yield "## What it is worth\n" + "\n".join(_worth(card))
    if card.verdicts:
        listed = "\n".join(f"- {escape(one)}" for one in card.verdicts)
        yield f"## What the study says of this arm\n{listed}"
    size = card.preprocessing.image_size_px
    yield (
        f"## Classes and preprocessing\n{', '.join(escape(name) for name in card.classes)}\n\n"
        f"A picture is resized on its shorter side to {size} pixels (bilinear, antialiased) and cut to the centre; "
        "transparency is laid on white, of an animation the first frame is taken. The ONNX file takes uint8 RGB and "
        "scales it itself. All of it is in `predictor.json`."
    )
    yield (
        "## How it was trained\n"
        + f"{escape(of.data)}, digest `{of.data_digest}`; {count(of.epochs, 'epoch')}, {of.precision}.\n\n"
        + ("```yaml\n" + yaml.safe_dump(of.recipe, sort_keys=False, allow_unicode=True) + "```")
    )
    yield "## Limits\n" + "\n".join(f"- {line}" for line in _limits(card))
    yield "## Files\n" + _files(card, checked, has_page)


def _use(card: Card, has_page: bool) -> str:
    size = card.preprocessing.image_size_px
    page = "python app.py                   # a page to drop pictures on\n" if has_page else ""
    return (
        f"```console\npip install -r requirements.txt\npython predict.py picture.jpg\n{page}```\n"
        "```python\nfrom portable.onnx_network import OnnxNetwork\n"
        "from portable.pictures import open_picture\nfrom pathlib import Path\n\n"
        f'network = OnnxNetwork(Path("."))\nanswer = network.answer(open_picture("picture.jpg", {size}))\n'
        "print(answer.label, answer.probability, answer.warning)\n```"
    )


def _worth(card: Card) -> Iterator[str]:
    worth = card.accuracy
    low, high = worth.interval
    yield f"| | |\n|---|---|\n| this network | {worth.percent:.2f}% of {worth.num_images:,} test images |"
    yield f"| 95% CI, for new images like these | {low:.2f} to {high:.2f} |"
    if worth.over_seeds is not None:
        spread = worth.over_seeds
        low, high = spread.interval
        mean = f"{spread.mean:.2f}% (95% CI {low:.2f} to {high:.2f}, sd {spread.sd:.2f})"
        yield f"| its arm, {spread.num_seeds} seeds | {mean} |"
    chosen = "yes: its accuracy looks a little better than it is" if worth.is_chosen_on_test else "no"
    yield f"| chosen on this test set | {chosen} |"
    yield "\nThe network is that of the study's first seed, or of the run that was named: never the luckiest one."


def _limits(card: Card) -> Iterator[str]:
    size, usual = card.preprocessing.image_size_px, card.usual
    yield f"It knows {len(card.classes)} classes, and answers with one of them whatever the picture shows."
    yield f"It sees {size}x{size} pixels: what is small in a picture is gone."
    yield (
        f"It warns where its probability is below {usual.min_confidence:.0%} or its entropy above "
        f"{usual.max_entropy:.2f} nats, bounds that {usual.share:.1%} of its test images keep. A network can be sure "
        "of pictures that are unlike anything it has seen: no warning is no proof."
    )
    yield (
        "Its probabilities are as the training left them; nothing was calibrated after it. It was evaluated in "
        f"{card.origin.precision}, and the ONNX file computes in fp32."
    )
    yield "What its training images lack, or have wrong, it does not know; it was examined for no use but this study."


def _files(card: Card, checked: str, has_page: bool) -> str:
    rows = [
        ("`model.onnx`", checked),
        ("`weights.safetensors`", "the same weights, for torch"),
        ("`predictor.json`", "classes, preprocessing, where the weights are from, checksums"),
        ("`predict.py`, `portable/`", "pictures in, classes out, on onnxruntime"),
        *([("`app.py`, `examples/`", "the page")] if has_page else []),
    ]
    return "| file | what |\n|---|---|\n" + "\n".join(f"| {name} | {what} |" for name, what in rows)
