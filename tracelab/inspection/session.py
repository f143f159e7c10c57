"""What answers the inspector: a model, edits with strengths, and one request at a time.

No widget is known here. A request is a mapping as the front end sends it; the answer is a mapping of
the parts that changed. Whatever goes wrong becomes one sentence in the answer, as an error in the
kernel would be seen by nobody.

    {"do": "run", "prompt": …, "edits": [{"on": …, "strength": …}, …], "layer": …, "lens": …}
    {"do": "heads", "layer": …}      another layer of the same passes: nothing is computed
    {"do": "texts", "seed": …}       continuations, before and under the same edits
"""  # noqa: E501

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError, as_message
from tracelab.gradients import measuring
from tracelab.inspection.before_after import BeforeAfter, inspect
from tracelab.inspection.continuations import text_rows
from tracelab.inspection.moves import MAP_MOST, layers_by_change
from tracelab.inspection.payload import heads_of_layer, page_of, pieces_of, setup_of, view_of
from tracelab.interventions.base import Intervention
from tracelab.interventions.stack import Stack
from tracelab.model.hooked import require_unedited
from tracelab.model.texts import as_texts
from tracelab.model.tokens import encode
from tracelab.model.weights import held
from tracelab.ranges import require_int, require_number, require_seed

STRONGEST = 2.0
"""Twice what was learnt; beyond, most edits break the text."""
_KEPT_BYTES = 1_000_000


class Session:
    """A model and edits, and the last comparison of them.

    Attributes:
        result: the comparison that is shown, as ``inspect(…, positions="all")`` made it.
        texts: the continuations that are shown, if any.
        switches: of each edit, whether it is on and its strength.
    """

    def __init__(
        self,
        model: TransformerBridge,
        edits: Mapping[str, Intervention],
        prompt: str,
        *,
        top: int,
        sensitive: Sequence[str],
        new_tokens: int,
        prepend_bos: bool | None,
    ) -> None:
        self.model, self.edits = model, dict(edits)
        self.top, self.sensitive, self.prepend_bos = top, list(sensitive), prepend_bos
        self.new_tokens = require_int("new_tokens", new_tokens)
        self.switches = [{"on": True, "strength": 1.0} for _ in self.edits]
        self.texts: dict[str, Any] | None = None
        self.result, self._edit = self._compared(prompt, self._stack(self.switches), lens=False)

    def setup(self) -> dict[str, Any]:
        """What does not change: the model, and the edits as they are at first."""
        edits = [
            {"name": name, **switch} for name, switch in zip(self.edits, self.switches, strict=True)
        ]
        facts = setup_of(self.result.settings)
        return facts | {"edits": edits, "new_tokens": self.new_tokens}

    def shown(self, layer: int | None = None) -> dict[str, Any]:
        """The parts of the last comparison; of heads one layer, by default that which moved
        most."""
        ranked = layers_by_change(self.result.heads, 0, 0)
        if ranked and layer not in range(len(ranked)):
            layer = ranked[0]
        heads = None if layer is None else heads_of_layer(self.result, _EDITED, 0, layer)
        return {"view": view_of(self.result, _EDITED), "heads": heads, "texts": self.texts}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what the front end asks for; never raises.

        Returns:
            The parts that changed, and ``said``: the request's ``id``, ``seconds``, and ``error``,
            a sentence or nothing.
        """
        start, error = time.perf_counter(), ""
        parts: dict[str, Any] = {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parts = self._done(request)
        except KeyboardInterrupt:
            error = "interrupted"
        except TracelabError as refusal:
            error = str(refusal)
        except Exception as failure:  # the front end has nobody else to tell it
            error = as_message(f"{type(failure).__name__}: {failure}")
        seconds = round(time.perf_counter() - start, 3)
        said = {"id": str(request.get("id", "")), "error": error, "seconds": seconds}
        return parts | {"said": said}

    def page(self) -> dict[str, Any]:
        """What is shown now, for a page that stands alone."""
        name = self._name()
        settings = self.result.settings
        tables: dict[str, Any] = {
            field: getattr(self.result, field).replace({"edit": {_EDITED: name}})
            for field in ("tokens", "positions", "moves")
        }
        settings = settings | {"edits": {name: settings["edits"][_EDITED]}}
        made = page_of(replace(self.result, settings=settings, **tables), most_bytes=_KEPT_BYTES)
        made["cases"][0]["texts"] = self.texts
        return made

    @held()
    def _done(self, request: Mapping[str, Any]) -> dict[str, Any]:
        kind = request.get("do")
        if kind == "run":
            switches = self._checked(request.get("edits"))
            stack, lens = self._stack(switches), bool(request.get("lens"))
            self.result, self._edit = self._compared(request.get("prompt"), stack, lens=lens)
            self.switches, self.texts = switches, None
            return self.shown(request.get("layer"))
        if kind == "heads":
            layer = require_int("a layer", request.get("layer"), 0, self._n_layers - 1)
            return {"heads": heads_of_layer(self.result, _EDITED, 0, layer)}
        if kind == "texts":
            self.texts = self._written(require_seed(request.get("seed")))
            return {"texts": self.texts}
        raise TracelabError(f"the inspector cannot {kind!r}: it can run, heads and texts")

    def _compared(self, prompt: Any, stack: Stack, *, lens: bool) -> tuple[BeforeAfter, Stack]:
        (text,) = as_texts(prompt, "prompt") if isinstance(prompt, str) else ("",)
        if not text.strip():
            raise TracelabError("there is no prompt: type the beginning of a sentence")
        n = len(encode(self.model, text, prepend_bos=self.prepend_bos).ids)
        if n > MAP_MOST:
            raise TracelabError(
                f"the prompt has {n} tokens, and the inspector shows at most {MAP_MOST}: shorten "
                "it, or use tracelab.inspect"
            )
        result = inspect(
            self.model,
            {_EDITED: stack},
            text,
            positions="all",
            top=self.top,
            lens=lens,
            top_directions=1,
            sensitive=self.sensitive,
            prepend_bos=self.prepend_bos,
        )
        return result, stack

    @measuring()
    def _written(self, seed: int) -> dict[str, Any]:
        require_unedited(self.model, "the inspector")
        (row,) = text_rows(
            self.model,
            {_EDITED: self._edit},
            list(self.result.settings["prompts"]),
            self.new_tokens,
            seed=seed,
            prepend_bos=self.prepend_bos,
        )
        return {"seed": seed} | pieces_of(row["before"], row["after"])

    def _checked(self, given: Any) -> list[dict[str, Any]]:
        if not isinstance(given, list | tuple) or len(given) != len(self.edits):
            raise TracelabError(f"the inspector has {len(self.edits)} edits: run the cell again")
        switches = []
        for name, each in zip(self.edits, given, strict=True):
            strength = require_number(f"the strength of {name}", each.get("strength"), least=0)
            if strength > STRONGEST:
                raise TracelabError(f"the strength of {name} is at most {STRONGEST:g}")
            switches.append({"on": bool(each.get("on")), "strength": strength})
        return switches

    def _stack(self, switches: Sequence[Mapping[str, Any]]) -> Stack:
        """The edits that are on, at their strengths; one of strength 0 is off."""
        return Stack(
            [
                edit if switch["strength"] == 1 else edit.scaled(switch["strength"])
                for edit, switch in zip(self.edits.values(), switches, strict=True)
                if switch["on"] and switch["strength"]
            ]
        )

    def _name(self) -> str:
        """The edits that are on, for the saved page."""
        names = [
            name if switch["strength"] == 1 else f"{name} × {switch['strength']:g}"
            for name, switch in zip(self.edits, self.switches, strict=True)
            if switch["on"] and switch["strength"]
        ]
        return " + ".join(names) or "nothing"

    @property
    def _n_layers(self) -> int:
        return int(self.result.settings["model"]["n_layers"])


_EDITED = "edited"
"""What the stack of the edits that are on is called in tables."""
