"""What the tests of KLAAD share: records, and each sentence run by itself as slow oracle."""

from __future__ import annotations

import torch

from tests.interventions.triple_records import records
from tracelab.interventions import KLAAD, KLAADConfig
from tracelab.interventions.klaad.klaad import KLAADLoss
from tracelab.interventions.klaad.losses import aligned_positions, attention_loss, triplet_loss
from tracelab.interventions.training.triples import LABELS, tokenise
from tracelab.model.tokens import encode

LAST = 3
KINDS = ("llama", "gpt2", "gpt_neo")
# of seven target terms; sentences of a pair often differ in length
GIVEN = records(12, bias="gender")
UNBOUNDED = {"max_kl": 1e9, "max_lms_loss": 100.0}
QUICK = {"rank": 2, "batch_size": 4, "eval_every": 2, "lr": 0.02, "choose": "loss", **UNBOUNDED}
LAMS = {"ce": "lam1", "attention": "lam2", "triplet": "lam3"}
EVEN = dict.fromkeys(LAMS.values(), 1.0)


def only(loss: str) -> dict[str, float]:
    """Weights that leave one of the losses."""
    return {**dict.fromkeys(LAMS.values(), 0.0), LAMS[loss]: 1.0}


def fit(model, given=GIVEN, dev=None, *, checkpoint=None, **config) -> KLAAD:
    """A quick fit; developed on what it is trained on, unless told otherwise."""
    return KLAAD.fit(
        model,
        given,
        KLAADConfig(**{**QUICK, **config}),
        dev=given if dev is None else dev,
        checkpoint=checkpoint,
    )


def loss_of(model, given=GIVEN, first_layer: int = 0, **config) -> KLAADLoss:
    return KLAADLoss(model, tokenise(model, given), KLAADConfig(**{**QUICK, **config}), first_layer)


def gradients(edit) -> list[torch.Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in edit.parameters()]


def backward(loss: KLAADLoss, edit, batch) -> tuple[dict[str, float], list[torch.Tensor]]:
    edit.zero_grad()
    parts = loss.backward(edit, batch)
    return parts, gradients(edit)


def same(first, second) -> bool:
    return all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def alone(model, edit, ids) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Nats of a sentence's tokens from the second on, last attention map and last hidden state,
    without padding."""
    seen = {}

    def keep(value, hook):
        seen[hook.name] = value[0]

    names = [f"blocks.{LAST}.attn.hook_pattern", "ln_final.hook_out"]
    with edit.applied(model):
        scores = model.run_with_hooks(
            torch.tensor([ids]), fwd_hooks=[(name, keep) for name in names]
        )[0]
    nats = [-scores[i].log_softmax(-1)[ids[i + 1]] for i in range(len(ids) - 1)]
    pattern, hidden = (seen[name] for name in names)
    return torch.stack(nats), pattern, hidden[-1] / hidden[-1].norm()


def one_by_one(model, edit, given, config: KLAADConfig) -> dict[str, torch.Tensor]:
    """The losses of records, each sentence run alone."""
    nats: list[list[torch.Tensor]] = [[], []]
    kl, triplet = [], []
    for record in given:
        ids = [encode(model, getattr(record, label).text).ids for label in LABELS]
        (s_nats, s_map, s_end), (a_nats, a_map, a_end), (_, _, u_end) = (
            alone(model, edit, each) for each in ids
        )
        nats[0].append(s_nats)
        nats[1].append(a_nats)
        kl.append(attention_loss(s_map[None], a_map[None], [aligned_positions(ids[0], ids[1])])[0])
        triplet.append(triplet_loss(s_end[None], a_end[None], u_end[None], config.margin)[0])
    parts = {
        "ce": sum(torch.cat(side).mean() for side in nats) / 2,
        "attention": torch.stack(kl).mean(),
        "triplet": torch.stack(triplet).mean(),
    }
    return {"loss": sum(getattr(config, lam) * parts[name] for name, lam in LAMS.items()), **parts}
