"""Where can a stereotype be read? One prober a layer, from MLP output to social group (FairMed).

For a prompt that names a concept and stops before the social group, with ``a_l`` the MLP output of
layer l at the last token and ``P`` the model's next-token distribution,

    soft label  y_g = Σ_{w ∈ group g} P(w) / Σ_g' Σ_{w ∈ group g'} P(w)
    prober      p_l = softmax(W2 ReLU(W1 a_l + b1) + b2),  trained on cross-entropy with y

and a layer's score is the macro-F1 of argmax p_l against argmax y (FairMed, arXiv 2504.07787, and
its code). The first tokens of a group's words stand for the words. A group that is hardly ever the
most likely (under 2 % of the prompts) is left out of the mean: its F1 is a coin flip on a handful
of rows.

What the score is evidence of depends on what is held out. FairMed splits sentences, so that the
same concept stands in training and test; here test rows have a concept *and* a template that
training never saw. Beside it stands a control task: the same prober on shuffled labels. A layer's
*selectivity* is the difference (Hewitt & Liang, 2019). That a group can be read at a layer does not
show that the model uses it: see :mod:`tracelab.localize.tracing.causal_trace`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from tracelab.datasets.templates import Corpus
from tracelab.errors import TracelabError, require_choice, warn
from tracelab.figures import f1_per_layer
from tracelab.gradients import measuring
from tracelab.localize.probing.harvest import Harvest, group_token_ids, harvest
from tracelab.localize.probing.prober import ProberConfig, Probers, train_probers
from tracelab.model.load import model_facts
from tracelab.model.settings import run_settings
from tracelab.progress import progress
from tracelab.ranges import INT_MOST, SEEDS_MOST, require_int, require_seed, shown
from tracelab.results import Result
from tracelab.statistics import percentile_interval, resample_counts

SPLITS = ("concept_template", "concept", "sentence")

MIN_SHARE = 0.02
"""Groups that are the most likely after fewer of the prompts than this do not enter macro-F1."""


@dataclass(frozen=True)
class LayerProbes(Result):
    """F1 per layer, with the probers and labels behind it.

    Attributes:
        layers: one row a layer: ``attribute, layer, f1, low, high, f1_control, control_low,
            control_high, selectivity, selectivity_low, selectivity_high, accuracy, kl, n_test,
            top_k`` (``n_test``: over all seeds).
        labels: one row a prompt: ``id, concept, template, argmax, mass`` (probability of all
            groups' words), ``p_<group>`` (soft label), ``held_out`` (not in the kept probers'
            training rows).
        probers: tensors of the kept probers (first seed), one row a layer, and ``norm_std``: the
            standard deviation over training prompts of the norm of the MLP output, which sets
            FairMed's radius.
    """

    layers: pd.DataFrame
    labels: pd.DataFrame
    probers: dict[str, Tensor]

    @property
    def frame(self) -> pd.DataFrame:
        """The table of layers."""
        return self.layers

    def headline(self) -> str:
        """The best layer's F1."""
        best = self.layers.loc[self.layers["f1"].idxmax()]
        return (
            f"{self.settings['attribute']}, n = {len(self.labels)} prompts, "
            f"best F1 {best['f1']:.2f} in layer {best['layer']}"
        )

    @property
    def top_layers(self) -> list[int]:
        """The chosen layers, best F1 first."""
        chosen = self.layers[self.layers["top_k"]]
        return chosen.sort_values(["f1", "layer"], ascending=[False, True])["layer"].tolist()

    def unseen(self, corpus: Corpus) -> Corpus:
        """The prompts of a corpus that share neither concept nor template with the kept probers'
        training rows.

        Raises:
            TracelabError: there are none.
        """
        seen = self.labels[~self.labels["held_out"]]
        concepts, templates = set(seen["concept"]), set(seen["template"])
        prompts = [
            p for p in corpus.prompts if p.concept not in concepts and p.template not in templates
        ]
        if not prompts:
            raise TracelabError(
                "every prompt shares its concept or template with the probers' training prompts"
            )
        return replace(corpus, prompts=tuple(prompts))

    def plot(self) -> go.Figure:
        """F1 per layer with its interval and the control."""
        return f1_per_layer(self.layers, self.settings)


@measuring()
def probe_layers(
    model: TransformerBridge,
    corpus: Corpus,
    *,
    config: ProberConfig | None = None,
    split: str = "concept_template",
    n_seeds: int = 3,
    top_k: int | None = None,
    prepend_bos: bool | None = None,
    batch_tokens: int = 1024,
    states: Harvest | None = None,
    seed: int = 0,
) -> LayerProbes:
    """Train and score one prober a layer.

    Args:
        corpus: prompts of one attribute (:func:`tracelab.datasets.templates`).
        split: what the test rows share with no training row: ``"concept_template"`` (neither
            concept nor template), ``"concept"``, or ``"sentence"`` (the paper's: rows only).
        n_seeds: splits and initialisations; test rows are pooled over them.
        top_k: how many layers to choose by F1, ties to the lower layer; default 9 of 32, in
            proportion.
        states: of this model and corpus, harvested already.
        seed: of the first split; the others follow.

    Raises:
        TracelabError: a group without a usable word, one group the most likely for every prompt, or
            a corpus too small to hold anything out.
    """
    require_seed(seed)
    if not isinstance(corpus, Corpus):
        raise TracelabError(
            f"probe_layers takes a corpus, not {shown(corpus)}: datasets.templates has some, and "
            "makes one of your own word lists"
        )
    require_choice("split", split, SPLITS)
    require_int("n_seeds", n_seeds, most=SEEDS_MOST)
    require_int("batch_tokens", batch_tokens)
    n_layers = model_facts(model).n_layers
    top_k = max(1, round(9 / 32 * n_layers)) if top_k is None else top_k
    if not 1 <= require_int("top_k", top_k, -INT_MOST) <= n_layers:
        raise TracelabError(f"top_k={top_k} is out of range: the model has {n_layers} layers")
    config = config or ProberConfig()
    words = group_token_ids(model, corpus)
    splits = [split_rows(corpus, split, seed + k) for k in range(n_seeds)]
    if states is None:
        states = harvest(model, corpus, words, prepend_bos=prepend_bos, batch_tokens=batch_tokens)
    truth = states.labels.argmax(dim=1)
    scored = scored_groups(states.labels, corpus)
    n_train, n_groups = min(len(train) for train, _ in splits), len(corpus.groups)
    if n_train < 50 * n_groups:
        warn(f"{n_train} training prompts for {n_groups} groups: fewer than 50 a group")
    tally = _Tally(corpus, n_layers, scored)
    kept: Probers | None = None
    with progress(total=2 * n_seeds * config.epochs, what="probers", unit="epoch") as bar:
        for k, (train, test) in enumerate(splits):
            shuffled = torch.randperm(
                len(truth), generator=torch.Generator().manual_seed(seed + k + 7919)
            )
            for control in (False, True):
                labels = states.labels[shuffled] if control else states.labels
                probers = train_probers(
                    states.activations, labels, train, config=config, seed=seed + k, step=bar.update
                )
                logits = probers(states.activations[test].float())
                tally.add(test, labels[test], logits, control=control)
                if k == 0 and not control:
                    kept = probers
    assert kept is not None
    first_train, _ = splits[0]
    # A piece at a time: the activations may be mapped to a file larger than memory.
    norms = torch.cat([states.activations[rows].norm(dim=-1) for rows in first_train.split(256)])
    tensors = {**kept.state_dict(), "norm_std": norms.std(dim=0, correction=0)}
    labels_table = _labels_table(corpus, states.labels, states.mass, first_train)
    settings = run_settings(
        model,
        [corpus],
        attribute=corpus.attribute,
        groups=list(corpus.group_names),
        group_tokens=[ids.tolist() for ids in words],
        groups_scored=[n for n, yes in zip(corpus.group_names, scored, strict=True) if yes],
        prober=config.settings(),
        split=split,
        n_seeds=n_seeds,
        top_k=top_k,
        prepend_bos=model_facts(model).prepend_bos if prepend_bos is None else prepend_bos,
        seed=seed,
    )
    return LayerProbes(settings, tally.table(top_k, seed), labels_table, tensors)


def scored_groups(
    labels: Float[Tensor, "prompts groups"], corpus: Corpus
) -> Bool[np.ndarray, "groups"]:
    """Which groups are the most likely after at least :data:`MIN_SHARE` of the prompts.

    Raises:
        TracelabError: only one is.
    """
    truth = labels.argmax(dim=1)
    shares = truth.bincount(minlength=len(corpus.groups)) / len(truth)
    scored = (shares >= MIN_SHARE).numpy()
    if scored.sum() < 2:
        only = corpus.group_names[int(shares.argmax())]
        raise TracelabError(
            f"the group {only!r} is the most likely after {shares.max():.0%} of the prompts: F1 "
            "would say nothing; bring a corpus with other concepts, or other group words"
        )
    return scored


def split_rows(
    corpus: Corpus, split: str, seed: int
) -> tuple[Int[Tensor, "train"], Int[Tensor, "test"]]:
    """Indices of the training and test prompts of one split.

    A quarter of the concepts and, for ``"concept_template"``, a quarter of the templates are held
    out; prompts that hold only one of the two are in neither. ``"sentence"`` holds out a fifth of
    the rows, as FairMed does.

    Raises:
        TracelabError: too few concepts, templates or prompts to hold any out.
    """
    generator = np.random.default_rng(seed)

    def held_out(values: Sequence[str], share: float) -> np.ndarray:
        names = sorted(set(values))
        count = round(len(names) * share)
        if count < 1 or count >= len(names):
            raise TracelabError(
                f"{len(names)} concepts, templates or prompts are too few to hold out {share:.0%}"
            )
        return np.isin(values, generator.choice(names, count, replace=False))

    prompts = corpus.prompts
    if split == "sentence":
        test = held_out([prompt.id for prompt in prompts], 0.2)
        train = ~test
    else:
        test = held_out([prompt.concept for prompt in prompts], 0.25)
        train = ~test
        if split == "concept_template":
            other = held_out([prompt.template for prompt in prompts], 0.25)
            test, train = test & other, train & ~other
    return torch.tensor(np.flatnonzero(train)), torch.tensor(np.flatnonzero(test))


def macro_f1(
    confusion: Float[np.ndarray, "*axes groups groups"], scored: Bool[np.ndarray, "groups"]
) -> Float[np.ndarray, "*axes"]:
    """Macro-F1 of confusion counts ``[…, true group, predicted group]`` over the ``scored`` groups.

    Equals ``sklearn.metrics.f1_score(average="macro", labels=…)``, for many resamples at once; a
    group that is neither true nor predicted in a resample is left out of that resample's mean.
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    total = confusion.sum(axis=-1) + confusion.sum(axis=-2)
    with np.errstate(invalid="ignore"):
        f1 = 2 * hits / np.where(total > 0, total, np.nan)
    with warnings.catch_warnings():
        # a resample without any scored group is nan
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(f1[..., scored], axis=-1)


class _Tally:
    """Confusion counts by concept and layer, pooled over seeds, for the real and the control
    task."""

    def __init__(self, corpus: Corpus, n_layers: int, scored: Bool[np.ndarray, "groups"]) -> None:
        self.corpus = corpus
        self.scored = scored
        self.concepts = sorted({prompt.concept for prompt in corpus.prompts})
        groups = len(corpus.groups)
        shape = (2, n_layers, len(self.concepts), groups, groups)
        self.confusion = np.zeros(shape)
        self.kl = np.zeros(n_layers)
        self.n_test = 0

    def add(
        self,
        rows: Int[Tensor, "test"],
        labels: Float[Tensor, "test groups"],
        logits: Float[Tensor, "layers test groups"],
        *,
        control: bool,
    ) -> None:
        concepts = np.array(
            [self.concepts.index(self.corpus.prompts[i].concept) for i in rows.tolist()]
        )
        truth = labels.argmax(dim=-1).numpy()
        predicted = logits.argmax(dim=-1).cpu().numpy()
        for layer, row in enumerate(predicted):
            np.add.at(self.confusion[int(control), layer], (concepts, truth, row), 1)
        if not control:
            divergence = torch.nn.functional.kl_div(
                logits.log_softmax(dim=-1).cpu(), labels.expand_as(logits), reduction="none"
            )
            self.kl += divergence.sum(dim=(1, 2)).numpy()
            self.n_test += len(rows)

    def table(self, top_k: int, seed: int) -> pd.DataFrame:
        seen = self.confusion.sum(axis=(0, 1, 3, 4)) > 0
        counts = self.confusion[:, :, seen]
        pooled = counts.sum(axis=2)
        values = macro_f1(pooled, self.scored)  # [task, layer]
        weights = resample_counts(int(seen.sum()), seed=seed)
        # One layer at a time keeps [resamples, groups, groups] small.
        rows = []
        for layer in range(counts.shape[1]):
            draws = macro_f1(np.einsum("rc,tcgh->trgh", weights, counts[:, layer]), self.scored)
            low, high = percentile_interval(draws[0])
            control_low, control_high = percentile_interval(draws[1])
            better_low, better_high = percentile_interval(draws[0] - draws[1])
            rows.append(
                {
                    "attribute": self.corpus.attribute,
                    "layer": layer,
                    "f1": values[0, layer],
                    "low": low,
                    "high": high,
                    "f1_control": values[1, layer],
                    "control_low": control_low,
                    "control_high": control_high,
                    "selectivity": values[0, layer] - values[1, layer],
                    "selectivity_low": better_low,
                    "selectivity_high": better_high,
                    "accuracy": np.trace(pooled[0, layer]) / pooled[0, layer].sum(),
                    "kl": self.kl[layer] / self.n_test,
                    "n_test": self.n_test,
                }
            )
        table = pd.DataFrame(rows)
        best = table.sort_values(["f1", "layer"], ascending=[False, True])["layer"].head(top_k)
        return table.assign(top_k=table["layer"].isin(best))


def _labels_table(
    corpus: Corpus,
    labels: Float[Tensor, "prompts groups"],
    mass: Float[Tensor, "prompts"],
    train: Int[Tensor, "train"],
) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "id": [prompt.id for prompt in corpus.prompts],
            "concept": [prompt.concept for prompt in corpus.prompts],
            "template": [prompt.template for prompt in corpus.prompts],
            "argmax": [corpus.group_names[i] for i in labels.argmax(dim=1).tolist()],
            "mass": mass.numpy(),
        }
    )
    table[[f"p_{name}" for name in corpus.group_names]] = labels.numpy()
    return table.assign(held_out=~table.index.isin(train.tolist()))
