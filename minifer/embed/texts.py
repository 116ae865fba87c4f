"""What goes beside a compiled model that reads text: in each language the tokenizer and `predict_sentiment`."""

from __future__ import annotations

import re
from pathlib import Path
from string import Template

from minifer.embed.abi import Interface
from minifer.embed.targets import Platform

#: what the metadata of a model says that reads the tokens of minifer.pipelines.text
TOKENIZER = "minifer.pipelines.text"
_FOLDER = Path(__file__).parent / "text"


def files(interface: Interface, platform: Platform, metadata: dict[str, str]) -> dict[str, str]:
    """File name -> text; none where the model reads no tokens."""
    if metadata.get("tokenizer") != TOKENIZER:
        return {}
    name = interface.name
    kinds = ("js", "d.ts") if platform.form == "wasm" else ("h", "rs")
    return {f"{name}_text.{kind}": _filled(kind, interface) for kind in kinds}


def _filled(kind: str, interface: Interface) -> str:
    separate = interface.separate
    values = {
        "name": interface.name,
        "NAME": interface.name.upper(),
        "tokenizer": _tokenizer(kind),
        "weights": ", const void *weights" if separate else "",
        "given": ", weights" if separate else "",
    }
    return Template((_FOLDER / f"predict.{kind}").read_text(encoding="utf-8")).substitute(values)


def _tokenizer(kind: str) -> str:
    """The tokenizer's own file, without what belongs to a file of its own."""
    path = _FOLDER / f"tokenizer.{kind}"
    if not path.exists():
        return ""
    text = path.read_text(encoding="utf-8")
    return re.sub(r"^#(ifndef|define|endif)( MINIFER_TOKENIZER_H)?$\n?", "", text, flags=re.M)
