"""What an operator can say about models on disk."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """Section ``[store]``: where models are looked for, and where they are put.

    Attributes:
        models_dir: the folder for what this server downloads; empty means the usual one for programs' data
            (docs/models.md).
        discover: serve what Ollama, Hugging Face's tools and LM Studio have on this machine already, in place.
        auto_pull: a request for a recommended model, or for one of Hugging Face's by hf.co/…, that is not here has it
            downloaded first. Whoever may send requests can then fill the disk.
        recommended: a file with models of your own to recommend, in the layout of server/store/recommended.toml.

    """

    models_dir: str = ""
    discover: bool = True
    auto_pull: bool = False
    recommended: str = ""
