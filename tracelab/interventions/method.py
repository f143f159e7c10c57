"""A method: an intervention that is fitted on data, by the same call whichever it is.

    edit = KLAAD.fit(model, KLAAD.training_data("gender"), rank=4)

:meth:`Method.fit` checks what every fit has to check; the method's own work is
:meth:`Method.learned`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, Self

from pydantic import BaseModel, create_model
from transformer_lens.model_bridge import TransformerBridge

from tracelab.config import Config as AnyConfig
from tracelab.config import configured
from tracelab.datasets.own import pairs
from tracelab.errors import TracelabError, quoted
from tracelab.gradients import learning
from tracelab.interventions.base import Intervention
from tracelab.model.hooked import require_unedited
from tracelab.model.load import model_facts
from tracelab.ranges import require_layers, shown
from tracelab.storage.checkpoint import require_entries


class Method(Intervention):
    """Base of what is fitted.

    Attributes:
        Config: the method's configuration.
        SpecBase: fields of :attr:`Spec` besides ``config``, for a method that sets no ``Spec``.
        biases: bias types that :meth:`training_data` has.
        needs: attributes that data must have.
        uses_dev: whether a fit looks at development data.
        entries: under which a fit is stored in its checkpoint; none: it is too quick to be.
        unfitted: fields of the configuration that no fit depends on, which :meth:`with_config`
            changes in a fitted edit.
        tried: what :meth:`grid` gives unless a method says more.
    """

    Config: ClassVar[type[AnyConfig]]
    SpecBase: ClassVar[type[BaseModel] | None] = None
    biases: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    uses_dev: ClassVar[bool] = False
    entries: ClassVar[tuple[str, ...]] = ()
    unfitted: ClassVar[tuple[str, ...]] = ()
    tried: ClassVar[Mapping[str, Sequence[Any]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "Config" in vars(cls) and "Spec" not in vars(cls) and cls.SpecBase is not None:
            cls.Spec = create_model(
                f"{cls.__name__}Spec",
                __base__=cls.SpecBase,
                __module__=cls.__module__,
                config=(cls.Config, ...),
            )
            cls.Spec.__qualname__ = f"{cls.__qualname__}.Spec"  # where pickle finds it

    @classmethod
    def training_data(
        cls,
        bias: str,
        *,
        source: str | Path = "wheel",
        limit: int | None = None,
        without: Collection[str] = (),
    ) -> Any:
        """What the method is fitted on for a bias type, from the embedded data.

        Args:
            source: ``"wheel"``, ``"hub"``, or a path to the official files.
            limit: at most so many records.
            without: target terms of StereoSet that must not be in it.

        Raises:
            TracelabError: no such data for this bias type, or no data that tracelab knows of.
        """
        raise TracelabError(f"tracelab has no data to fit {cls.kind} on: give fit() your own")

    @classmethod
    def own_data(cls, file: Path | str, bias: str, limit: int | None = None) -> Any:
        """Data of your own from a file: for most methods pairs of sentences.

        Raises:
            TracelabError: the file holds no such data.
        """
        return pairs(file, bias=None if bias == "all" else bias, limit=limit)

    @classmethod
    def grid(cls, model: TransformerBridge) -> Any:
        """What :func:`tracelab.tune` tries by default: values by field, or several such."""
        return cls.tried

    def with_config(self, config: Any) -> Self:
        """The same edit with another configuration, where no fit depends on what differs.

        Raises:
            TracelabError: the method has no such fields.
        """
        raise TracelabError(f"every field of {type(self).Config.__name__} is of the fit: fit again")

    @classmethod
    @learning()
    def fit(
        cls,
        model: TransformerBridge,
        data: Any,
        config: AnyConfig | None = None,
        *,
        layers: Sequence[int] | str | None = None,
        dev: Any = None,
        checkpoint: Path | str | None = None,
        allow_hooks: bool = False,
        **changes: Any,
    ) -> Self:
        """Fit the method.

        Args:
            data: what :meth:`training_data` gives, or your own of that kind; nothing that the edit
                will be scored on.
            config: default: ``Config()``.
            layers: numbers, or words that the method knows (BiasEdit: ``"last123"``, ``"auto"``);
                default: the method's own choice.
            dev: development data, for a method that looks at some; default: a part of ``data``.
            checkpoint: folder in which a fit of minutes is stored, and resumed from if it was
                interrupted.
            allow_hooks: fit on a model with hooks on, as it is with them.
            changes: fields of the configuration: ``fit(model, data, rank=4)``.

        Raises:
            TracelabError: a configuration, layers or data that do not serve, hooks on the model, or
                training that diverges.
        """
        began = perf_counter()
        cls._require_known(changes)
        config = configured(cls.Config, config, changes, cls.__name__)
        require_unedited(model, f"a fit of {cls.__name__}", allow_hooks=allow_hooks)
        if isinstance(layers, str):
            cls.require_layer_words(layers)
        elif layers is not None:
            facts = model_facts(model)
            layers = require_layers(layers, facts.n_layers, facts.model_id)
            if not layers:
                raise TracelabError(f"{cls.__name__} needs at least one layer")
        data = cls.accepted(data)
        if missing := [name for name in cls.needs if not hasattr(data, name)]:
            raise TracelabError(
                f"{cls.__name__} cannot be fitted on {shown(data)}: it has no {missing[0]}; give "
                f"what {cls.__name__}.training_data gives, or your own of that kind"
            )
        if dev is not None and not cls.uses_dev:
            raise TracelabError(f"{cls.__name__} looks at no development data: leave dev out")
        require_entries(checkpoint, *cls.entries)
        folder = None if checkpoint is None else Path(checkpoint)
        edit = cls.learned(model, data, config, layers=layers, dev=dev, checkpoint=folder)
        for name, value in edit.state_dict().items():
            if not value.isfinite().all():
                raise TracelabError(
                    f"the fit of {edit.name} gave values in {name} that are not finite"
                )
        # None: more than this call did, and nobody knows how long that took
        if edit.notes.setdefault("fit_seconds", round(perf_counter() - began, 1)) is None:
            del edit.notes["fit_seconds"]
        return edit

    @classmethod
    def accepted(cls, data: Any) -> Any:
        """What a fit makes of data that were not made for the method, such as records of pairs."""
        return data

    @classmethod
    def _require_known(cls, changes: Iterable[str]) -> None:
        """Refuse arguments that are neither of :meth:`fit` nor fields of the configuration."""
        known = [*cls.Config.model_fields, "layers", "dev", "checkpoint", "allow_hooks"]
        for name in changes:
            if name not in known:
                meant = "checkpoint" if name == "partial" else None
                meant = meant or next(iter(get_close_matches(name, known, n=1)), None)
                told = f"did you mean {meant}?" if meant else f"it has {', '.join(known)}"
                raise TracelabError(f"{cls.__name__}.fit has no argument {name}: {told}")

    @classmethod
    @abstractmethod
    def learned(
        cls,
        model: TransformerBridge,
        data: Any,
        config: Any,
        *,
        layers: Any,
        dev: Any,
        checkpoint: Path | None,
    ) -> Self:
        """The fitted edit, with what made it in its notes; the arguments are checked as far as they
        are the same for all methods."""

    @classmethod
    def require_layer_words(cls, words: str) -> str:
        """Return words for ``layers`` that the method understands; most understand none.

        Raises:
            TracelabError: it does not.
        """
        raise TracelabError(f"layers {quoted(words)} are not understood: give numbers")
