from __future__ import annotations

import pytest

from modernbert.data.columns import (
    Columns,
    answer_columns,
    choice_columns,
    split_names,
    tag_columns,
    text_columns,
)
from tests.data.scaffold import refusal


@pytest.mark.parametrize(
    ("names", "summary"),
    [
        ("text label", "text: text, label: label"),
        ("idx sentence label", "text: sentence, label: label, id: idx"),
        ("genre sentence1 sentence2 score", "text: sentence1, text_pair: sentence2, label: score"),
        ("idx premise hypothesis label", "text: premise, text_pair: hypothesis, label: label, id: idx"),
        ("question sentence label", "text: question, text_pair: sentence, label: label"),
        ("question passage title answer", "text: question, text_pair: passage, label: answer"),
        ("question answer label", "text: question, text_pair: answer, label: label"),
        ("Review Rating", "text: Review, label: Rating"),
        ("text-a text_b class", "text: text-a, text_pair: text_b, label: class"),
        ("id title text category", "text: text, label: category, id: id"),
        ("headline topic", "text: headline, label: topic"),
        ("labels content", "text: content, label: labels"),
    ],
)
def test_texts_and_labels_are_guessed(names: str, summary: str) -> None:
    assert text_columns(names.split(), Columns(), origin="a.csv").summary() == summary


def test_what_is_given_is_taken_and_the_rest_guessed() -> None:
    names = ["sentence1", "sentence2", "label", "score"]
    both = text_columns(names, Columns(label="score"), origin="a.csv")
    assert both.summary() == "text: sentence1, text_pair: sentence2, label: score"
    one = text_columns(names, Columns(text="sentence2"), origin="a.csv")
    assert one.summary() == "text: sentence2, label: label"
    second = text_columns(names, Columns(text_pair="sentence2"), origin="a.csv")
    assert second.summary() == "text: sentence1, text_pair: sentence2, label: label"
    label_is_text = text_columns(["text", "review"], Columns(label="text"), origin="a.csv")
    assert label_is_text.summary() == "text: review, label: text"


def test_a_label_may_be_missing_where_none_is_wanted() -> None:
    assert text_columns(["text"], Columns(), origin="a.csv", labelled=False).summary() == "text: text"
    columns = answer_columns(["question", "context"], Columns(), origin="a.csv", labelled=False)
    assert columns.answers is None
    columns = choice_columns(["question", "choices"], Columns(), origin="a.csv", labelled=False)
    assert columns.label is None


@pytest.mark.parametrize(
    ("names", "summary"),
    [
        ("tokens tags", "words: tokens, tags: tags"),
        ("id words ner_tags pos_tags", "words: words, tags: ner_tags"),
        ("tokens labels", "words: tokens, tags: labels"),
        ("text spans", "text: text, spans: spans"),
        ("id text label", "text: text, spans: label"),
        ("sentence entities", "text: sentence, spans: entities"),
    ],
)
def test_words_tags_and_spans_are_guessed(names: str, summary: str) -> None:
    assert tag_columns(names.split(), Columns(), origin="a.jsonl").summary() == summary


def test_given_spans_go_before_words() -> None:
    names = ["text", "tokens", "tags", "marks"]
    assert tag_columns(names, Columns(spans="marks"), origin="a").summary() == "text: text, spans: marks"


@pytest.mark.parametrize(
    ("names", "summary"),
    [
        (
            "id title context question answers",
            "question: question, context: context, answers: answers, id: id",
        ),
        ("query passage answer", "question: query, context: passage, answers: answer"),
    ],
)
def test_answers_are_guessed(names: str, summary: str) -> None:
    assert answer_columns(names.split(), Columns(), origin="a.jsonl").summary() == summary


@pytest.mark.parametrize(
    ("names", "summary"),
    [
        (
            "question distractor3 distractor1 distractor2 correct_answer support",
            "label: correct_answer, question: question, context: support, "
            "choices: correct_answer,distractor1,distractor2,distractor3",
        ),
        ("id question_stem choices answerKey", "label: answerKey, question: question_stem, choices: choices"),
        (
            "premise choice2 choice1 question idx label",
            "label: label, question: question, context: premise, choices: choice1,choice2",
        ),
        (
            "sent1 sent2 startphrase ending0 ending1 ending10 ending2 label",
            "label: label, question: startphrase, choices: ending0,ending1,ending2,ending10",
        ),
        ("goal sol1 sol2 label", "label: label, question: goal, choices: sol1,sol2"),
        (
            "article question options answer",
            "label: answer, question: question, context: article, choices: options",
        ),
        ("question A B C D answer", "label: answer, question: question, choices: A,B,C,D"),
        ("ctx endings label", "label: label, question: ctx, choices: endings"),
    ],
)
def test_choices_are_guessed(names: str, summary: str) -> None:
    assert choice_columns(names.split(), Columns(), origin="a.jsonl").summary() == summary


def test_given_choices_are_several_columns_or_one() -> None:
    names = ["question", "right", "wrong", "a,b"]
    columns = choice_columns(names, Columns(choices="right, wrong", label="right"), origin="a.csv")
    assert columns.question == "question"
    assert split_names("right, wrong", names) == ["right", "wrong"]
    assert split_names("a,b", names) == ["a,b"]


def test_a_given_column_that_is_missing_is_named_with_the_nearest() -> None:
    message = refusal(lambda: text_columns(["text", "label"], Columns(text="txt"), origin="train.csv"))
    assert message == (
        "`train.csv` has no column `txt`; did you mean `text`?; it has `text`, `label`; set `columns.text` "
        "to one of them"
    )
    message = refusal(lambda: choice_columns(["question", "b"], Columns(choices="b,c9"), origin="a.csv"))
    assert message.startswith("`a.csv` has no column `c9`; it has `question`, `b`; set `columns.choices`")


def test_a_column_that_cannot_be_guessed_is_named_with_those_there_are() -> None:
    message = refusal(lambda: text_columns(["text", "x"], Columns(), origin="train.csv"))
    assert message == (
        "`train.csv` has no column whose name tells that it is `label` (label, labels, category, "
        "categories …); it has `text`, `x`; set `columns.label` to one of them, or name the columns in the "
        "file's first line if it does not"
    )
    for call, role in (
        (lambda: text_columns(["x", "y", "label"], Columns(), origin="a"), "text"),
        (lambda: tag_columns(["x"], Columns(), origin="a"), "words"),
        (lambda: tag_columns(["tokens"], Columns(), origin="a"), "tags"),
        (lambda: tag_columns(["text"], Columns(), origin="a"), "spans"),
        (lambda: answer_columns(["question", "context"], Columns(), origin="a"), "answers"),
        (lambda: choice_columns(["question", "label"], Columns(), origin="a"), "choices"),
        (lambda: choice_columns(["question", "choices"], Columns(), origin="a"), "label"),
    ):
        assert f"tells that it is `{role}` (" in refusal(call)
