"""The gradio page on which a user drops images; it needs gradio, numpy and Pillow."""

from __future__ import annotations

import os
import re
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
"""Largest upload."""
MAX_PIXELS = 24_000_000
"""Most pixels of an upload: a small file can hold many, and decoding takes up to 25 bytes of memory for each."""
SHOWN_PX = 256
"""Height and width at which the page shows the network's input."""
LOOPBACK = ("127.0.0.1", "localhost", "::1", "[::1]")
"""Host names under which only this machine can open the page."""
NOBODY = "nobody"
"""Choice in the list of networks that compares with none; callers of the API send it."""
TOP = 5
"""Number of classes shown."""
CSS = """
.gradio-container {max-width: 1000px !important; margin: auto !important}
#seen img {image-rendering: pixelated}
#examples .grid-container {grid-template-columns: repeat(5, minmax(0, 1fr)) !important}
#examples .grid-wrap {min-height: 0 !important}
#warning, #warning-of-other {border-left: 4px solid #d97706; padding-left: 0.8em}
"""


@dataclass(frozen=True)
class PageNetwork:
    """A network as the page shows it."""

    name: str
    """Its name in the list of networks to compare with."""
    about: Callable[[], str]
    """Returns a description with the network's accuracy, as markdown."""
    image_size_px: int
    answer: Callable[[Picture], Answer]


def build_page(
    network: PageNetwork, others: Sequence[PageNetwork], examples: Sequence[Path], *, title: str, question: str
) -> Any:
    """Build the gradio page of a network.

    The page's API has one endpoint, ``/predict``, which takes a file and the name of another network (or "nobody") and
    returns the answers of both and the image as the network sees it. ``open_picture`` decodes all uploads with its own
    limits, because gradio's image input lets Pillow open any format.

    Args:
        network: The network that answers.
        others: Networks that the user can compare it with.
        examples: Image files that the user can pick instead of uploading one.
        title: Heading, plain text.
        question: Line below the heading, plain text.
    """
    by_name = {one.name: one for one in others}

    def look(path: str | None, other: str | None) -> tuple[Any, ...]:
        if not path:
            return (None, "", *_no_answer(), *_no_rival())
        try:
            picture = open_picture(path, network.image_size_px, name=_name_of(path), max_pixels=MAX_PIXELS)
        except PictureError as error:
            gr.Warning(str(error), title="This image cannot be used")
            return (None, f"**This image cannot be used:** {error}.", *_no_answer(), *_no_rival())
        answer = network.answer(picture)
        seen = (_enlarged(picture), f"Brought to size: {picture.how}.", *_answered(answer))
        return (*seen, *(_no_rival() if other not in by_name else _rival(by_name[other], path, answer)))

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown(f"# {plain(title)}\n{plain(question)}")
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Drop a picture here", file_types=list(SUFFIXES), type="filepath", elem_id="file")
                gallery = _gallery(examples)
            with gr.Column():
                seen = _seen(network.image_size_px)
                how = gr.Markdown(elem_id="how")
        other = gr.Dropdown(
            [NOBODY, *by_name], value=NOBODY, label="Compare with", visible=bool(by_name), elem_id="other"
        )
        with gr.Row():
            with gr.Column():
                label = gr.Label(label=network.name, num_top_classes=TOP, elem_id="label")
                warning = gr.Markdown(visible=False, elem_id="warning")
                gr.Markdown(network.about(), elem_id="about")
            with gr.Column(visible=False) as rival:
                rival_label = gr.Label(num_top_classes=TOP, elem_id="label-of-other")
                rival_warning = gr.Markdown(visible=False, elem_id="warning-of-other")
                rival_about = gr.Markdown(elem_id="about-other")
        outputs = [seen, how, label, warning, rival, rival_label, rival_warning, rival_about]
        file.change(look, [file, other], outputs, api_name="predict", show_progress="minimal")
        other.change(look, [file, other], outputs, api_visibility="private", show_progress="minimal")
        if gallery is not None:
            gallery.select(_picker(examples), None, file, api_visibility="private", show_progress="hidden")
    return page


def launch(page: Any, *, host: str, port: int, share: bool = False) -> str:
    """Serve the page in background threads and return its address; raises OSError if the port is taken."""
    for name in ("no_proxy", "NO_PROXY"):  # gradio requests the page to see whether it is up
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1,localhost,::1"]))
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])  # no web fonts
    _, address, public = page.queue(max_size=64, default_concurrency_limit=1).launch(
        server_name=host,
        server_port=port or None,
        share=share,
        max_file_size=MAX_FILE_SIZE,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        theme=theme,
        css=CSS,
        footer_links=["api"],
        app_kwargs={"middleware": [] if share or host not in LOOPBACK else [_only_local_hosts()]},
    )
    return str(public or address)


def _only_local_hosts() -> Any:
    """Refuse other host names, to which a web site could rebind its own to read the page (DNS rebinding)."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK])


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


def _picker(examples: Sequence[Path]) -> Callable[[gr.SelectData], str]:
    def pick(event: gr.SelectData) -> str:
        return str(examples[int(event.index)])

    return pick


def _seen(size_px: int) -> Any:
    return gr.Image(
        label=f"What the network sees: {size_px}x{size_px}",
        type="pil",
        format="png",
        interactive=False,
        height=SHOWN_PX + 40,
        buttons=[],
        elem_id="seen",
    )


def plain(text: str) -> str:
    """Escape text so that markdown shows it literally."""
    return re.sub(r"([\\`*_{}\[\]<>()#+!|~&-])", r"\\\1", " ".join(text.split()))


def _name_of(path: str) -> str:
    """Name of an uploaded file without gradio's temporary folder, safe to show in a message."""
    return re.sub(r"[^\w .+()-]", "_", Path(path).name)


def _enlarged(picture: Picture) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(picture.pixels.transpose(1, 2, 0)))
    return image.resize((SHOWN_PX, SHOWN_PX), Image.Resampling.NEAREST)


def _answered(answer: Answer) -> tuple[Any, ...]:
    """Values of the label and of the warning."""
    return dict(answer.classes), gr.Markdown(answer.warning, visible=bool(answer.warning))


def _no_answer() -> tuple[Any, ...]:
    return None, gr.Markdown("", visible=False)


def _rival(rival: PageNetwork, path: str, ours: Answer) -> tuple[Any, ...]:
    """Values of the other network's column, label, warning and description."""
    try:
        theirs = rival.answer(open_picture(path, rival.image_size_px, max_pixels=MAX_PIXELS))
        about = rival.about()
    except Exception as error:  # such as missing weights: the page stays usable without the comparison
        return gr.Column(visible=True), gr.Label(None, label=rival.name), gr.Markdown(visible=False), plain(str(error))
    agree = "Both say the same." if theirs.label == ours.label else "They do not agree."
    probabilities, warning = _answered(theirs)
    shown = gr.Label(probabilities, label=rival.name)
    return gr.Column(visible=True), shown, warning, f"*{agree}*\n\n{about}"


def _no_rival() -> tuple[Any, ...]:
    return gr.Column(visible=False), None, gr.Markdown("", visible=False), ""
