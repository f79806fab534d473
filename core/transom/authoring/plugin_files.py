"""What a new plugin's files say: the templates, and everything that they leave open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from types import MappingProxyType

from transom import __version__
from transom.slots import SLOTS

__all__ = ["STARTING_POINTS", "PluginFiles", "StartingPoint"]

_TEMPLATES = files("transom.authoring") / "templates"


@dataclass(frozen=True)
class StartingPoint:
    """What the first implementation of a slot is, and what it declares.

    Args:
        summary: a few words, for metadata and README.
        features: those of the slot that it has.
        modes: that it serves.
        remark: a paragraph for the README, on what a spec has to say for it to serve.
    """

    summary: str
    features: tuple[str, ...] = ()
    modes: tuple[str, ...] = ("train", "infer")
    remark: str = ""


STARTING_POINTS: Mapping[str, StartingPoint] = MappingProxyType(
    {
        "model": StartingPoint("A decoder-only language model"),
        "layer": StartingPoint("A layer whose halves read one norm"),
        "self_attention": StartingPoint("A self-attention"),
        "cross_attention": StartingPoint("A cross-attention"),
        "mlp": StartingPoint("An MLP with squared ReLU"),
        "core_attention": StartingPoint(
            "A scaled dot-product attention",
            (
                "causal",
                "bottom_right",
                "packed",
                "prefix",
                "padding",
                "positions",
                "keep",
                "window",
                "gqa",
                "value_head_size",
                "cross",
            ),
            remark="`attention_dropout` is 0.1 unless a spec's config says otherwise, and this attention does not\n"
            "drop: write `attention_dropout: 0.0` there, or it is refused in training.",
        ),
        "column_linear": StartingPoint("A column linear"),
        "row_linear": StartingPoint("A row linear"),
        "embedding": StartingPoint("An embedding table"),
        "norm": StartingPoint("An RMSNorm", ("rmsnorm",)),
        "norm_linear": StartingPoint("An RMSNorm and a linear in one", ("rmsnorm",)),
        "activation": StartingPoint("SiLU and its gated form", ("silu", "gated")),
        "rotary": StartingPoint("A rotary position embedding", ("half_split",)),
        "bias_dropout_add": StartingPoint("A bias-dropout-add", ("dropout",)),
        "loss": StartingPoint("A token cross-entropy"),
        "kv_cache": StartingPoint("A key/value cache", ("value_head_size",), ("infer",)),
    }
)
"""By slot; those that one can begin with."""


@dataclass(frozen=True, kw_only=True)
class PluginFiles:
    """A plugin's names, and the texts of its files.

    Args:
        distribution: its name for pip, normalised.
        asked: the slot, or the name of several, as the author gave it.
        slots: what that stands for.
        author: for metadata and licence.
    """

    distribution: str
    asked: str
    slots: tuple[str, ...]
    author: str

    @property
    def package(self) -> str:
        """The name of the Python package, and of the implementation in specs."""
        return self.distribution.replace("-", "_")

    def texts(self) -> dict[Path, str]:
        """Fill in every template: texts by paths below the plugin's folder."""
        package = Path("src") / self.package
        texts = {
            Path("pyproject.toml"): self._filled("pyproject.toml", entry_points=self._entry_points()),
            Path("README.md"): self._filled("README.md"),
            Path("LICENSE"): self._filled("LICENSE"),
            Path(".gitignore"): self._filled("gitignore"),
            Path(".github/workflows/test.yml"): self._filled("ci.yml"),
            package / "__init__.py": self._filled("init.py"),
            package / "py.typed": "",
            package / "transom.toml": self._filled("card.toml", tables="".join(map(self._table, self.slots))),
            Path("tests/test_conformance.py"): self._filled("test_conformance.py"),
        }
        for slot in self.slots:
            texts[package / f"{slot}.py"] = self._filled(f"slots/{slot}.py", class_name=self._class_name(slot))
        return texts

    def _filled(self, template: str, **more: str) -> str:
        text = (_TEMPLATES / f"{template}.template").read_text(encoding="utf-8")
        several = len(self.slots) > 1
        remark = STARTING_POINTS[self.slots[0]].remark
        return Template(text).substitute(
            distribution=self.distribution,
            package=self.package,
            name=self.package,
            module=self.slots[0],
            use=self.asked,
            reference=f"{self.slots[0]}/{self.package}" if several else self.package,
            registered=", ".join(f'("{slot}", "{self.package}")' for slot in self.slots),
            summary="A pair of linears" if several else STARTING_POINTS[self.slots[0]].summary,
            remark=f"\n{remark}\n" if remark else "",
            author=self.author,
            year=str(datetime.now(UTC).year),
            transom_version=__version__,
            **more,
        )

    def _class_name(self, slot: str) -> str:
        words = "".join(word.capitalize() for word in self.distribution.split("-"))
        return words if len(self.slots) == 1 else words + slot.partition("_")[0].capitalize()

    def _entry_points(self) -> str:
        return "".join(
            f'[project.entry-points."transom.{slot}"]\n'
            f'{self.package} = "{self.package}.{slot}:{self._class_name(slot)}"\n'
            for slot in self.slots
        )

    def _table(self, slot: str) -> str:
        start = STARTING_POINTS[slot]
        features = ", ".join(f'"{feature}"' for feature in start.features)
        modes = ", ".join(f'"{mode}"' for mode in start.modes)
        lines = [
            "",
            f"[{slot}.{self.package}]",
            'api = "{}.{}"'.format(*SLOTS[slot].api),
            'devices = ["any"]',
            'dtypes = ["any"]',
            *([f"features = [{features}]"] if features else []),
            f"modes = [{modes}]",
            "compiles = true",
            "deterministic = true",
        ]
        return "\n".join(lines) + "\n"
