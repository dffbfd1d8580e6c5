"""Classify images: ``python predict.py IMAGE...``. Needs numpy, Pillow and onnxruntime (requirements.txt)."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from portable.onnx_network import OnnxNetwork
from portable.pictures import PictureError, open_picture

HERE = Path(__file__).resolve().parent


def main() -> int:
    """Print the likeliest classes of each image; return 1 if one cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    parser.add_argument("--top", type=int, default=3, help="classes to show")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    given = parser.parse_args()
    if given.top < 1:
        parser.error("--top: give 1 or more")
    try:
        network = OnnxNetwork(HERE)
    except (OSError, ValueError, KeyError) as error:
        print(error, file=sys.stderr)
        return 1
    code, found = 0, []
    for path in given.images:
        try:
            answer = network.answer(open_picture(path, network.image_size_px))
        except PictureError as error:
            print(error, file=sys.stderr)
            code = 1
            continue
        if given.json:
            found.append({"path": path, **answer.as_dict(given.top)})
            continue
        print(
            path, *(f"{name} {value:.1%}" for name, value in answer.classes[: given.top]), f"({answer.how})", sep="  "
        )
        if answer.warning:
            print("  !", answer.warning)
    if given.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
    return code


if __name__ == "__main__":
    sys.exit(main())
