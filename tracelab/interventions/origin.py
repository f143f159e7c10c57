"""What an intervention was made for: the model, by its weights and sizes, and where its points lie
in it."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict
from torch import nn
from transformer_lens.model_bridge import TransformerBridge

from tracelab.errors import TracelabError
from tracelab.model.hook_points import Point, linear_maps, module_path, require_editable
from tracelab.model.load import model_facts, model_info, require_hook
from tracelab.model.weights import fingerprint_like, same_weights


class Origin(BaseModel):
    """The model an intervention was made for, and where its points lie in plain
    ``transformers``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())

    model_id: str
    revision: str | None
    fingerprint: str
    n_layers: int
    d_model: int
    d_vocab: int
    prepend_bos: bool
    paths: dict[str, str] = {}
    """Module path by point; the logits, which the model itself returns, have none."""

    @classmethod
    def of(cls, model: TransformerBridge, points: Sequence[Point] = ()) -> Origin:
        """Of a loaded model; ``points`` are those the intervention acts on.

        Raises:
            TracelabError: the model lacks one of the points.
        """
        for point in points:
            point_name(model, point)
        info = model_info(model)
        return cls(
            model_id=info.model_id,
            revision=None if info.adapter else info.revision,  # else it is the base's
            fingerprint=info.fingerprint,
            n_layers=info.n_layers,
            d_model=model.cfg.d_model,
            d_vocab=model.cfg.d_vocab,
            prepend_bos=info.prepend_bos,
            paths={
                str(point): path
                for point in points
                if (path := module_path(model, point)) is not None
            },
        )

    def require(
        self,
        model_id: str,
        hf_model: nn.Module,
        sizes: tuple[int, int, int],
        allow_mismatch: bool,
    ) -> None:
        """Refuse another model than the one this was made for."""
        own = (self.n_layers, self.d_model, self.d_vocab)
        if own != sizes:
            raise TracelabError(
                f"this edit was made for {self.model_id} (layers, d_model, vocabulary: {own}), "
                f"{model_id} has {sizes}: fit it on that model"
            )
        if not allow_mismatch and not same_weights(hf_model, self.fingerprint):
            raise TracelabError(
                f"this edit was made for {self.model_id} with weights {self.fingerprint}, "
                f"{model_id} has weights {fingerprint_like(self.fingerprint, hf_model)}: fit it on "
                "that model, or load it with allow_mismatch=True"
            )


def point_name(model: TransformerBridge, point: Point) -> str:
    """The hook name of a point (of a linear map: without ``.hook_in``), if this model has it.

    Raises:
        TracelabError: the model has no such point or layer, or edits there do not do what they
            should.
    """
    require_editable(point)
    if not point.linear:
        return require_hook(model, point.kind, point.layer)
    require_hook(model, "resid_post", point.layer)  # the layer exists
    if point.kind not in (there := linear_maps(model, point.layer or 0)):
        raise TracelabError(
            f"{model_facts(model).model_id} has no linear map {point}: that block has "
            f"{', '.join(there) or 'none'}"
        )
    return str(point)
