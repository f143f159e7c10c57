"""Every target term scored by an edit whose fit has not seen it.

StereoSet's ``test`` records are cut into folds that share no target term. A method is fitted once a fold,
without the fold's terms, and the fold is scored under that edit; together the folds are as many records as
there are, none of them trained on. :func:`tracelab.tune` chooses by such scores; and
``splits=("test", "dev")`` adds the official ``dev`` set, scored under a fit on all of ``test`` (they share no
term), which narrows the interval of an effect: see ``analyses/coverage.py``. Not an official number.
"""  # noqa: E501

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pandas as pd
from sklearn.model_selection import GroupKFold
from transformer_lens.model_bridge import TransformerBridge

from tracelab.config import Config
from tracelab.datasets.group_pairs import GroupPairs
from tracelab.datasets.records import subsample
from tracelab.datasets.stereoset import StereoSetRecord, stereoset
from tracelab.errors import TracelabError
from tracelab.evaluate.benchmarks.stereoset import (
    StereoSetScores,
    stereoset_metrics,
    stereoset_scores,
)
from tracelab.evaluate.edited import EditedScores, compared
from tracelab.interventions.base import Intervention
from tracelab.interventions.method import Method
from tracelab.ranges import require_int, require_seed
from tracelab.storage.data_hash import data_hash

FOLDS = 3


@dataclass(frozen=True)
class Fold:
    """Records that are scored under one fit, and the target terms withheld from it."""

    records: tuple[StereoSetRecord, ...]
    terms: frozenset[str] = frozenset()


def folds_of(
    bias: str,
    *,
    folds: int = FOLDS,
    limit: int | None = None,
    splits: Sequence[str] = ("test",),
    without: Collection[str] = (),
) -> list[Fold]:
    """Folds of nearly as many records each; ``dev``, if it is asked for, is the last.

    Args:
        limit: at most so many records of each split, subsampled evenly; all their terms are
            withheld.
        without: target terms of ``test`` that are in no fold.

    Raises:
        TracelabError: fewer target terms than folds.
    """
    require_int("folds", folds, 2)
    there = [record for record in stereoset(bias, split="test") if record.target not in without]
    records = subsample(there, limit)
    terms = [record.target for record in records]
    if len(set(terms)) < folds:
        raise TracelabError(f"{len(set(terms))} target terms make no {folds} folds: ask for fewer")
    parts = GroupKFold(n_splits=folds).split(np.zeros(len(records)), groups=terms)
    made = [
        Fold(tuple(records[i] for i in held), frozenset(terms[i] for i in held))
        for _, held in parts
    ]
    if "dev" in splits:
        made.append(Fold(tuple(subsample(stereoset(bias, split="dev"), limit))))
    return made


class HeldOut:
    """Folds, and the unedited model's scores on them."""

    def __init__(self, model: TransformerBridge, folds: Sequence[Fold], *, seed: int = 0) -> None:
        self.model, self.folds, self.seed = model, folds, seed
        records = [record for fold in folds for record in fold.records]
        self.before = stereoset_scores(model, records, seed=seed)

    def fit(
        self,
        method: type[Method],
        data: Any,
        config: Config,
        layers: Any = None,
        *,
        made: dict[str, Method] | None = None,
    ) -> list[Method]:
        """An edit a fold; where the folds' terms are not in the data anyway, one for all.

        Args:
            data: see :func:`training_data`.
            made: fits of before, by what they depend on, for other configurations that need no new
                fit.
        """
        made = {} if made is None else made
        return [
            self.fit_one(method, training_data(method, data, fold.terms), config, layers, made)
            for fold in self.folds
        ]

    def fit_one(
        self, method: type[Method], data: Any, config: Config, layers: Any, made: dict[str, Method]
    ) -> Method:
        """A fit on these data, or one of before with the fields changed that no fit depends on."""
        fields = method.Config.model_fields
        defaults = {n: fields[n].get_default(call_default_factory=True) for n in method.unfitted}
        key = repr((hash_of(data), config.replace(**defaults).settings(), layers))
        if key not in made:
            made[key] = method.fit(self.model, data, config, layers=layers)
        edit = made[key]
        if not method.unfitted:
            return edit
        changes = {name: getattr(config, name) for name in method.unfitted}
        return edit.with_config(cast(Any, edit).config.replace(**changes))

    def score(self, edits: Sequence[Intervention]) -> StereoSetScores:
        """Each fold under its edit, all together."""
        parts = []
        for fold, edit in zip(self.folds, edits, strict=True):
            with edit.applied(self.model):
                parts.append(stereoset_scores(self.model, fold.records, seed=self.seed).sentences)
        return with_sentences(self.before, pd.concat(parts, ignore_index=True), edits[0].name)


def with_sentences(scores: StereoSetScores, sentences: pd.DataFrame, edit: str) -> StereoSetScores:
    """The same records' scores under an edit."""
    benchmark, seed = scores.settings["benchmark"], scores.settings["seed"]
    table = stereoset_metrics(sentences, benchmark=benchmark, edit=edit, seed=seed)
    return StereoSetScores(scores.settings, table, sentences)


def training_data(method: type[Method], data: Any, without: Collection[str] = ()) -> Any:
    """What a fit is given.

    Args:
        data: a bias type, for the method's own data of it without these target terms; StereoSet
            records, of which those of other terms are taken;
            :class:`~tracelab.datasets.GroupPairs`, of which those that do not name them are; a
            function, which is given the terms; or anything else, which is taken as it is and must
            know nothing of StereoSet's ``test``.
    """
    if isinstance(data, GroupPairs):
        return data.without(without)
    if callable(data):
        return data(without)
    if isinstance(data, str):
        return method.training_data(data, without=without)
    if isinstance(data, list | tuple) and all(isinstance(each, StereoSetRecord) for each in data):
        return [record for record in data if record.target not in without]
    return data


def hash_of(data: Any) -> Any:
    """What tells data of a fit apart: a hash, or the settings of a result."""
    if hasattr(data, "settings"):
        return data.settings
    return data_hash(data if isinstance(data, list | tuple) else [data])


def cross_fitted(
    model: TransformerBridge,
    method: type[Method],
    data: Any,
    config: Config | None = None,
    *,
    bias: str | None = None,
    layers: Any = None,
    folds: int = FOLDS,
    limit: int | None = None,
    splits: Sequence[str] = ("test", "dev"),
    seed: int = 0,
) -> EditedScores:
    """A method's scores on all target terms of StereoSet, each by a fit that has not seen it.

    Args:
        data: a bias type; or data of your own, as for :func:`training_data`, and the ``bias`` type
            to score.
        config: of the fits; default: the method's.
        limit: at most so many records of each split.

    Raises:
        TracelabError: fewer target terms than folds, or what a fit refuses.
    """
    require_seed(seed)
    parts = folds_of(bias_of(data, bias), folds=folds, limit=limit, splits=splits)
    held = HeldOut(model, parts, seed=seed)
    edits = held.fit(method, data, (config or method.Config()).seeded(seed), layers)
    return compared(held.before, held.score(edits), edits[-1], seed=seed)


def bias_of(data: Any, bias: str | None) -> str:
    """The bias type to score: as it is told, or that of the data.

    Raises:
        TracelabError: neither tells.
    """
    found = bias or (data if isinstance(data, str) else getattr(data, "bias", None))
    if not isinstance(found, str):
        raise TracelabError('these data do not tell their bias type: add bias="gender"')
    return found
