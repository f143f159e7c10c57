"""What the inspector computes and sends, without a browser: sizes, strengths, refusals."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import tracelab
from tests.interventions.edits import random_delta, random_erasure, random_experts, random_fairmed
from tests.tiny import tiny_hf
from tracelab.errors import TracelabError
from tracelab.inspection.continuations import marked
from tracelab.inspection.payload import compact, page_of, view_of
from tracelab.inspection.sensitive import group_words
from tracelab.inspection.session import Session
from tracelab.interventions import Stack
from tracelab.model import assets
from tracelab.model.load import from_hf

PROMPT = "The nurse said that"
TWELVE = "The nurse said that the doctor was late because she had forgotten"


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


def session_of(model, edits, prompt=PROMPT, **options):
    defaults = {"top": 3, "sensitive": (), "new_tokens": 4, "prepend_bos": None}
    return Session(model, edits, prompt, **defaults | options)


def run(prompt=PROMPT, *strengths, **more):
    edits = [{"on": True, "strength": strength} for strength in strengths]
    return {"do": "run", "id": "a", "prompt": prompt, "edits": edits} | more


@pytest.fixture(scope="module")
def wide(tokenizer):
    """Layers and heads as the embedded model has them, and random weights."""
    own = AutoTokenizer.from_pretrained(assets.model_dir())
    config = {
        "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
        "hidden_size": 36,
    }  # fmt: skip
    return from_hf(tiny_hf("llama", len(tokenizer), **config), own, model_id="wide")


def test_the_state_of_a_cell_is_far_below_two_megabytes(wide):
    pytest.importorskip("anywidget")
    widget = tracelab.inspector(wide, random_delta(wide, layers=(3,)), TWELVE)
    assert len(widget.view["tokens"]) == 12
    widget.session.answer(run(TWELVE, 1.0, lens=True))
    state = {name: getattr(widget, name) for name in ("setup", "view", "heads", "texts")}
    assert len(compact(state)) < 60_000
    assert len(compact(widget.session.shown(29)["heads"])) < 12_000
    bundle, _ = widget._repr_mimebundle_()
    assert len(json.dumps(bundle)) < 1_000_000
    longest = " ".join(["the"] * 64)
    widget.session.answer(run(longest, 1.0))
    assert len(compact(widget.session.shown(5))) < 1_000_000
    bundle, _ = widget._repr_mimebundle_()
    assert len(json.dumps(bundle)) < 1_700_000  # of the heads those that moved most
    assert 1 < len(widget.session.page()["cases"][0]["heads"]["layers"]) < 30


def test_strengths_are_those_of_scaled_edits_and_nothing_is_the_unedited_model(model):
    delta, erasure = random_delta(model, scale=0.3), random_erasure(model)
    session = session_of(model, {"delta": delta, "erasure": erasure})
    answer = session.answer(run(PROMPT, 0.5, 1.5))
    stack = Stack([delta.scaled(0.5), erasure.scaled(1.5)])
    same = tracelab.inspect(model, {"edited": stack}, PROMPT, positions="all", top=3)
    assert answer["view"] == view_of(same, "edited")
    assert answer["said"]["error"] == ""
    for request in (
        run(PROMPT, 0.0, 0.0),
        run(PROMPT) | {"edits": [{"on": False, "strength": 2.0}] * 2},
    ):
        view = session.answer(request)["view"]
        assert view["kl"] == [0.0] * 4
        assert not np.any([view["maps"][name] for name in ("resid_post", "mlp_out", "attn_out")])


def test_heads_are_the_patterns_of_two_ordinary_passes(model):
    delta = random_delta(model)
    session = session_of(model, delta_of := {"delta": delta})
    heads = session.answer({"do": "heads", "layer": 2})["heads"]
    tokens = torch.tensor([model.tokenizer(PROMPT, add_special_tokens=False).input_ids])
    with torch.no_grad():
        _, before = model.run_with_cache(tokens)
        with delta_of["delta"].applied(model):
            _, after = model.run_with_cache(tokens)
    rows, columns = np.tril_indices(tokens.shape[1])
    old, new = (cache["blocks.2.attn.hook_pattern"][0].numpy() for cache in (before, after))
    np.testing.assert_allclose(np.array(heads["before"]) / 1e4, old[:, rows, columns], atol=4e-4)
    both = np.array(heads["before"]) + np.array(heads["change"])
    np.testing.assert_allclose(both / 1e4, new[:, rows, columns], atol=4e-4)
    assert np.abs(heads["change"]).max() > 100


def test_the_lens_in_the_last_layer_is_the_kl_of_the_next_token(model):
    result = tracelab.inspect(
        model, random_erasure(model, layers=(1,)), PROMPT, positions="all", lens=True
    )
    lens = result.moves.pivot(index="layer", columns="position", values="lens_kl").to_numpy()
    np.testing.assert_allclose(lens[-1], result.positions["kl"], rtol=1e-3, atol=1e-5)
    assert not lens[0].any()  # before the edit
    assert (lens[1:] > 1e-4).all()
    mixed = tracelab.inspect(model, random_experts(model), PROMPT, positions="all", lens=True)
    assert not mixed.moves["lens_kl"].any()  # experts change the logits, after every layer
    assert mixed.positions["kl"].min() > 1e-4


def test_the_lens_is_the_models_norm_and_unembedding_of_each_residual(model):
    edit = random_delta(model, layers=(0,), scale=0.3)
    found = tracelab.inspect(model, edit, PROMPT, lens=True).moves
    tokens = torch.tensor([model.tokenizer(PROMPT, add_special_tokens=False).input_ids])

    def lens(resid):
        return model.unembed(model.ln_final(resid)).double().log_softmax(-1)

    with torch.no_grad():
        _, before = model.run_with_cache(tokens)
        with edit.applied(model):
            _, after = model.run_with_cache(tokens)
        for row in found.itertuples():
            p, q = (
                lens(c[f"blocks.{row.layer}.hook_resid_post"])[0, row.position]
                for c in (before, after)
            )
            assert row.lens_kl == pytest.approx(
                float((p.exp() * (p - q)).sum()), rel=1e-2, abs=1e-5
            )


def test_continuations_are_those_of_generate_with_the_seed(model):
    erasure = random_erasure(model)
    session = session_of(model, {"erasure": erasure}, new_tokens=6)
    texts = session.answer({"do": "texts", "seed": 7})["texts"]
    for side, edit in (("before", erasure.scaled(0)), ("after", erasure)):
        with edit.applied(model):
            made = tracelab.generate(model, PROMPT, max_new_tokens=6, seed=7)
        assert "".join(text for text, _ in texts[side]) == made.frame["continuation"][0]
    assert session.answer({"do": "texts", "seed": 7})["texts"] == texts
    assert session.answer(run(PROMPT, 0.5))["texts"] is None  # they were of other strengths


def test_words_that_differ_are_marked_and_the_text_is_kept():
    pairs = [
        (" she was kind.", " he was kind."),
        ("", " x"),
        (" a  b\n", " a  b\n"),
        ("\n\nNew line", " other"),
    ]
    for before, after in pairs:
        pieces = marked(before, after)
        assert ["".join(text for text, _ in side) for side in pieces] == [before, after]
    assert marked(*pairs[0])[0] == [(" she", True), (" was kind.", False)]
    assert not any(differs for _, differs in marked(*pairs[2])[0])


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (run("", 1.0), "there is no prompt: type the beginning of a sentence"),
        (run("  \n", 1.0), "there is no prompt"),
        (run(None, 1.0), "there is no prompt"),
        (run("the " * 65, 1.0), "the inspector shows at most 64: shorten it"),
        (run("\ud800", 1.0), "it is not valid Unicode"),
        (run(PROMPT), "the inspector has 1 edits: run the cell again"),
        (run(PROMPT, 2.1), "the strength of delta is at most 2"),
        (run(PROMPT, -0.1), "the strength of delta is a number of at least 0, not -0.1"),
        (run(PROMPT, float("nan")), "the strength of delta is a number of at least 0, not nan"),
        (run(PROMPT) | {"edits": ["x"]}, "AttributeError"),
        ({"do": "texts", "seed": -1}, "seed is at least 0, not -1"),
        ({"do": "texts", "seed": None}, "seed is a whole number, not None"),
        ({"do": "heads", "layer": 4}, "a layer is at most 3, not 4"),
        ({"do": "fly"}, "the inspector cannot 'fly': it can run, heads and texts"),
        ({}, "the inspector cannot None"),
    ],
)
def test_whatever_is_wrong_is_one_sentence_and_changes_nothing(model, request_, said):
    session = session_of(model, {"delta": random_delta(model)})
    shown = session.shown()
    answer = session.answer(request_)
    assert answer.keys() == {"said"}
    assert said in answer["said"]["error"]
    assert "\n" not in answer["said"]["error"]
    assert session.shown() == shown


def test_a_failure_inside_the_model_is_told_too(model, monkeypatch):
    session = session_of(model, {"delta": random_delta(model)})
    for error, said in (
        (RuntimeError("out of\nmemory"), "RuntimeError: out of memory"),
        (KeyboardInterrupt(), "interrupted"),
    ):

        def fail(*_, raised=error, **__):
            raise raised

        monkeypatch.setattr("tracelab.inspection.session.inspect", fail)
        assert session.answer(run(PROMPT, 1.0))["said"]["error"] == said


def test_what_cannot_be_shown_at_first_is_refused_as_an_error(model, tiny_model, monkeypatch):
    pytest.importorskip("anywidget")
    delta = random_delta(model)
    for arguments, said in (
        (([], PROMPT), "the inspector needs at least one edit"),
        ((delta, ""), "there is no prompt"),
        ((delta, "the " * 65), "at most 64"),
    ):
        with pytest.raises(TracelabError, match=said):
            tracelab.inspector(model, *arguments)
    with delta.applied(model), pytest.raises(TracelabError, match="inspector"):
        tracelab.inspector(model, random_erasure(model))
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "tracelab.inspection.widget", raising=False)
    with pytest.raises(TracelabError, match=r"needs anywidget: pip install 'tracelab\[notebook\]'"):
        tracelab.inspector(model, delta)


def test_tokens_that_name_groups_are_marked_and_so_are_ones_own_words(model):
    edits = {"fairmed": random_fairmed(model)}
    session = session_of(model, edits, "The nurse and her two mothers", sensitive=["two"])
    view = session.shown()["view"]
    assert [view["tokens"][i] for i in view["sensitive"]] == ["·nurse", "·her", "·two", "·mothers"]
    assert "Muslim" not in group_words(edits.values())
    assert {"Muslim", "she", "black"} <= set(group_words([random_delta(model)]))


def test_what_is_saved_is_what_is_shown_and_names_the_strengths(model, tmp_path):
    pytest.importorskip("anywidget")
    edits = {"delta": random_delta(model), "erasure": random_erasure(model)}
    widget = tracelab.inspector(model, edits, PROMPT, top=3)
    widget._handle_custom_msg(run(PROMPT, 0.5, 1.0), [])
    (case,) = widget.session.page()["cases"]
    assert case["edit"] == "delta × 0.5 + erasure"
    assert case["view"] == widget.view
    assert case["heads"]["layers"][widget.heads["layer"]] == widget.heads
    assert [edit["strength"] for edit in widget.setup["edits"]] == [0.5, 1.0]
    file = widget.save(tmp_path / "page.html")
    assert "delta × 0.5 + erasure" in file.read_text(encoding="utf-8")
    (tmp_path / "own.html").write_text("mine", encoding="utf-8")
    with pytest.raises(TracelabError, match=r"own\.html"):
        widget.save(tmp_path / "own.html")
    assert repr(widget) == "Inspector(tiny-llama, delta, erasure)"


def test_a_page_of_a_result_has_every_prompt_under_every_edit(model):
    edits = {"delta": random_delta(model), "erasure": random_erasure(model)}
    result = tracelab.inspect(model, edits, [PROMPT, "He was"], new_tokens=3)
    page = page_of(result)
    assert [(case["prompt"], case["edit"]) for case in page["cases"]] == [
        (0, "delta"), (0, "erasure"), (1, "delta"), (1, "erasure"),
    ]  # fmt: skip
    assert page["cases"][0]["view"]["positions"] == [3]  # as inspect looks by default
    assert page["cases"][0]["view"]["kl"][:3] == [None] * 3
    assert {*page["cases"][3]["heads"]["layers"]} == {0, 1, 2, 3}
    few = page_of(result, most_bytes=600)["cases"][0]["heads"]
    assert list(few["layers"]) == [few["first"]]
