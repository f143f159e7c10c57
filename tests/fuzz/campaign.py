"""The campaign: ``python -m tests.fuzz.campaign --count 100000 --seed 0`` (``make fuzz``).

Each number of the campaign is one mutation of one bundle, the same whenever it is run. What has to
come of it:

    executed            0    nothing is run, unpickled or started, and no file is written
    accepted            0    damage that nobody signed: a bundle in other bytes than were written is loaded
    raw                 0    an error other than a TracelabError of one line, from load, hooks or attach
    broken              0    a forward pass that fails, though hooks and attach had nothing against the edit
"""  # noqa: E501

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import torch

from tests.fuzz.mutations import Files, damaged, forged_manifest, forged_tensors, misplaced
from tests.interventions.edits import random_delta, random_experts, random_fairmed
from tests.interventions.triple_records import save_word_tokenizer, word_hf, word_model
from tracelab.errors import LONGEST_MESSAGE, TracelabError
from tracelab.interventions import (
    KLAAD,
    BiasEdit,
    BiasEditConfig,
    Intervention,
    KLAADConfig,
    Stack,
    load_intervention,
)
from tracelab.interventions.biasedit.biasedit import BiasEditSpec
from tracelab.interventions.bundle import MANIFEST, TENSORS
from tracelab.interventions.klaad.klaad import KLAADSpec

FAULTS = ("executed", "accepted", "raw", "broken")
_ALARMS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.fork",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
)
_alarms: list[str] = []
_listening = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not _listening:
        return
    if event in _ALARMS:
        _alarms.append(event)
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        _alarms.append(f"open {arguments[0]!r}")


sys.addaudithook(_audit)  # there is no taking it back, so once


@contextmanager
def alarmed() -> Iterator[list[str]]:
    """Within the block, what runs or writes anything is noted."""
    global _listening
    _alarms.clear()
    _listening = True
    try:
        yield _alarms
    finally:
        _listening = False


@dataclass
class Campaign:
    """Bundles of every kind on one tiny model, and what became of their mutations.

    Attributes:
        said: how many mutations ended in which way, by kind of mutation.
        faults: what must not happen, each with the number of its mutation.
    """

    place: Path
    seed: int = 0
    said: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        words = self.place / "words"
        words.mkdir(parents=True)
        save_word_tokenizer(words)
        self.model, self.plain = word_model("llama", words), word_hf("llama", words)
        self.tokens = torch.arange(4, 10).reshape(2, 3)
        self.bundles: dict[str, Files] = {}
        self.facts: dict[str, Any] = {}
        for name, edit in _edits(self.model).items():
            edit.notes = {"seed": 3, "metrics": {"kl": [0.25]}}
            folder = edit.save(self.place / "whole" / name)
            self.bundles[name] = {
                file: (folder / file).read_bytes() for file in (MANIFEST, TENSORS)
            }
            self.facts[name] = facts(load_intervention(folder))
            # what is cached by a model is cached before files are watched
            self._use(load_intervention(folder))

    def run(self, numbers: range) -> None:
        """Carry out the mutations of these numbers."""
        for number in numbers:
            random = Random(f"{self.seed}-{number}")
            name = random.choice(list(self.bundles))
            how = random.choices(("damaged", "misplaced", "manifest", "tensors"), (40, 2, 45, 13))[
                0
            ]
            self._one(number, name, how, random)

    def _one(self, number: int, name: str, how: str, random: Random) -> None:
        files, folder = self.bundles[name], self.place / "copy"
        if how == "damaged":
            made = damaged(files, list(self.bundles.values()), random)
        else:
            made = {"manifest": forged_manifest, "tensors": forged_tensors}.get(
                how, lambda f, r: f
            )(files, random)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for file, content in made.items():
            (folder / file).write_bytes(content)
        if how == "misplaced":
            misplaced(folder, self.place / "outside", random)
        what = f"{number} ({name}, {how})"
        trusting = random.random() < 0.7
        edit = self._try(f"load {what}", lambda: load_intervention(folder, allow_mismatch=trusting))
        signed = how in ("manifest", "tensors") or made == files
        if edit is None:
            self.said[f"{how}: refused"] += 1
        elif not signed or how == "misplaced":
            self._fault("accepted", what)
        elif facts(edit) == self.facts[name]:
            self.said[f"{how}: the same edit"] += 1
        else:
            self.said[f"{how}: {self._use(edit, what)}"] += 1

    def _use(self, edit: Intervention, what: str = "whole") -> str:
        """Put an edit on the bridge and on the plain model, and run each."""
        ended = []
        for put_on, run in (
            (
                lambda: self.model.hooks(fwd_hooks=edit.hooks(self.model)),
                lambda: self.model(self.tokens),
            ),
            (lambda: edit.attach(self.plain), lambda: self.plain(self.tokens).logits),
        ):
            context = self._try(f"put on {what}", put_on)
            if context is None:
                ended.append("refused")
                continue
            with context, torch.no_grad():
                try:
                    run()
                    ended.append("ran")
                except Exception as error:
                    self._fault("broken", f"{what}: {type(error).__name__}: {str(error)[:300]}")
                    ended.append("broke")
        return "loaded, then " + " and ".join(ended)

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        """What a call gives; None if it refused with one line."""
        found = None
        with alarmed() as alarms:
            try:
                found = call()
            except TracelabError as error:
                if not str(error).isprintable() or len(str(error)) > LONGEST_MESSAGE:
                    self._fault("raw", f"{what}: a message that is no line: {str(error)[:300]!r}")
            except Exception as error:
                self._fault("raw", f"{what}: {type(error).__name__}: {str(error)[:300]}")
            if alarms:
                self._fault("executed", f"{what}: {alarms[:3]}")
        return found

    def _fault(self, kind: str, text: str) -> None:
        self.said[kind] += 1
        self.faults.append(f"{kind}: {text}")


def facts(edit: Intervention) -> Any:
    """All that an edit is: kinds, specifications, origins, notes, and every byte of its tensors."""
    parts = {name: part for name, part in edit.named_modules() if isinstance(part, Intervention)}
    said = {
        n: (
            p.kind,
            p.spec().model_dump_json(),
            p.origin and p.origin.model_dump_json(),
            repr(p.notes),
        )
        for n, p in parts.items()
    }
    tensors = {name: value.detach().numpy().tobytes() for name, value in edit.state_dict().items()}
    return said, tensors


def _edits(model: Any) -> dict[str, Intervention]:
    low, dense = random_delta(model, rank=2), random_delta(model, layers=(3,), rank=None, scale=0.1)
    return {
        "fairmed": random_fairmed(model, lam=2.0, groups=("female", "male")),
        "experts": random_experts(model, alpha=0.7, filter_order="base_first", top_p=0.8),
        "biasedit": BiasEdit(
            BiasEditSpec(maps=dense.spec().maps, config=BiasEditConfig(), bias="gender"),
            dense.origin,
        ),
        "klaad": KLAAD(
            KLAADSpec(maps=low.spec().maps, config=KLAADConfig(), bias="gender"), low.origin
        ),
        "weight_delta": low,
        "stack": Stack(
            [
                random_fairmed(model, seed=3),
                Stack([random_delta(model)]),
                random_experts(model, anti=False),
            ]
        ),
    }


def main() -> int:
    """Run the campaign and print its table; 1 if something happened that must not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first mutation")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        campaign = Campaign(Path(place), options.seed)
        began = time.perf_counter()
        for start in range(options.first, options.first + options.count, 1000):
            campaign.run(range(start, min(start + 1000, options.first + options.count)))
            print(
                f"{start - options.first + 1000} done, {len(campaign.faults)} faults",
                file=sys.stderr,
            )
        seconds = time.perf_counter() - began
    for what, n in sorted(campaign.said.items()):
        print(f"{n:8} {what}")
    print(f"{options.count} mutations in {seconds:.0f} s; faults: {len(campaign.faults)}")
    print(*campaign.faults[:50], sep="\n")
    return 1 if campaign.faults else 0


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    sys.exit(main())
