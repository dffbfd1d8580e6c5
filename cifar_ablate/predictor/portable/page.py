"""The page on which pictures are dropped: gradio, numpy and Pillow, and nothing of the rest of the program."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
import numpy as np
from PIL import Image

from .answers import Answer
from .pictures import SUFFIXES, Picture, PictureError, open_picture

MAX_FILE_SIZE = "20mb"
"""Of an upload."""
SHOWN_PX = 256
"""Side of the enlarged picture."""
NOBODY = "nobody"
CSS = """
.gradio-container {max-width: 1000px !important; margin: auto !important}
#seen img {image-rendering: pixelated}
#warning, #warning-of-other {border-left: 4px solid #d97706; padding-left: 0.8em}
"""


@dataclass(frozen=True)
class Shown:
    """A network as the page needs it."""

    name: str
    """For the list of networks to compare with."""
    about: Callable[[], str]
    """Which it is and what it is worth, as markdown."""
    image_size_px: int
    answer: Callable[[Picture], Answer]


def build_page(network: Shown, others: Sequence[Shown], examples: Sequence[Path], *, title: str, question: str) -> Any:
    """A gradio page for one network, compared with one of the ``others`` where asked for.

    A file is decoded here alone, by ``open_picture`` and its limits: gradio's own image input would let Pillow open any
    format. The function behind it is ``/predict`` of the page's API: file and name of the other network in; classes,
    picture, words for both networks out.
    """
    by_name = {one.name: one for one in others}

    def look(path: str | None, other: str | None) -> tuple[Any, ...]:
        if not path:
            return _cleared()
        try:
            picture = open_picture(path, network.image_size_px, name=_name_of(path))
        except PictureError as error:
            raise gr.Error(
                str(error), duration=None, title="This picture cannot be used", print_exception=False
            ) from None
        answer = network.answer(picture)
        shown = _enlarged(picture)
        first = (_label(answer), shown, f"Brought to size: {picture.how}.", _words(answer))
        if other not in by_name:
            return (*first, *_nothing())
        rival = by_name[other]
        theirs = rival.answer(open_picture(path, rival.image_size_px))
        return (*first, *_compared(rival, theirs, answer))

    def pick(other: str | None, event: gr.SelectData) -> tuple[Any, ...]:
        path = str(examples[int(event.index)])
        return (path, *look(path, other))

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {title}\n{question}")
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Drop a picture here", file_types=list(SUFFIXES), type="filepath", elem_id="file")
                gallery = _gallery(examples)
                other = gr.Dropdown(
                    [NOBODY, *by_name], value=NOBODY, label="Compare with", visible=bool(by_name), elem_id="other"
                )
            with gr.Column():
                label = gr.Label(label=network.name, num_top_classes=5, elem_id="label")
                warning = gr.Markdown(visible=False, elem_id="warning")
                seen = gr.Image(
                    label=f"What it sees: {network.image_size_px}x{network.image_size_px}",
                    type="pil",
                    interactive=False,
                    height=SHOWN_PX,
                    buttons=[],
                    elem_id="seen",
                )
                how = gr.Markdown(elem_id="how")
                other_label = gr.Label(num_top_classes=5, visible=False, elem_id="label-of-other")
                other_warning = gr.Markdown(visible=False, elem_id="warning-of-other")
                other_about = gr.Markdown(visible=False, elem_id="about-other")
        gr.Markdown(network.about(), elem_id="about")
        outputs = [label, seen, how, warning, other_label, other_warning, other_about]
        file.change(look, [file, other], outputs, api_name="predict", show_progress="minimal")
        other.change(look, [file, other], outputs, api_visibility="private", show_progress="minimal")
        if gallery is not None:
            gallery.select(pick, [other], [file, *outputs], api_visibility="private", show_progress="minimal")
    return page


def launch(page: Any, *, host: str, port: int, share: bool = False, block: bool = False) -> str:
    """Serve the page; gives its address. Raises OSError where the port is taken."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # none fetched
    _, address, public = page.queue(max_size=64, default_concurrency_limit=2).launch(
        server_name=host,
        server_port=port or None,
        share=share,
        max_file_size=MAX_FILE_SIZE,
        prevent_thread_lock=not block,
        quiet=True,
        ssr_mode=False,
        theme=theme,
        css=CSS,
        footer_links=["api"],
    )
    return str(public or address)


def _gallery(examples: Sequence[Path]) -> Any:
    if not examples:
        return None
    return gr.Gallery(
        [str(path) for path in examples],
        label="Or one of the test images",
        columns=5,
        height="auto",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="examples",
    )


def _name_of(path: str) -> str:
    """Of an uploaded file, without the folder that gradio made for it."""
    return Path(path).name


def _label(answer: Answer) -> dict[str, float]:
    return dict(answer.classes)


def _words(answer: Answer) -> Any:
    return gr.Markdown(answer.warning, visible=bool(answer.warning))


def _enlarged(picture: Picture) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture.pixels.transpose(1, 2, 0)))
    return image.resize((SHOWN_PX, SHOWN_PX), Image.Resampling.NEAREST)


def _compared(rival: Shown, theirs: Answer, ours: Answer) -> tuple[Any, ...]:
    agree = "Both say the same." if theirs.label == ours.label else "They do not agree."
    return (
        gr.Label(_label(theirs), label=rival.name, visible=True),
        _words(theirs),
        gr.Markdown(f"**{agree}** {rival.about()}", visible=True),
    )


def _nothing() -> tuple[Any, ...]:
    return gr.Label(visible=False), gr.Markdown(visible=False), gr.Markdown(visible=False)


def _cleared() -> tuple[Any, ...]:
    return (None, None, "", gr.Markdown(visible=False), *_nothing())
