"""Serve the page of this network: ``python app.py``. Needs gradio and onnxruntime (requirements.txt)."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from portable.onnx_network import OnnxNetwork
from portable.page import PageNetwork, build_page, launch

HERE = Path(__file__).resolve().parent

network = OnnxNetwork(HERE)
page = PageNetwork(network.card["origin"]["arm"], lambda: ABOUT, network.image_size_px, network.answer)
ABOUT = (HERE / "ABOUT.md").read_text(encoding="utf-8")
demo = build_page(
    page,
    [],
    sorted((HERE / "examples").glob("*.png")),
    title=f"{network.card['origin']['study']}: {network.card['origin']['arm']}",
    question="What does the network see in your image?",
)

if __name__ == "__main__":
    # a Space sets GRADIO_SERVER_NAME; elsewhere only this machine can open the page
    host = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1")
    port = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))
    try:
        print("Open", launch(demo, host=host, port=port), flush=True)
    except OSError:
        sys.exit(f"port {port} is taken; set GRADIO_SERVER_PORT to another one")
    demo.block_thread()
