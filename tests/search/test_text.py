"""Texts and queries of the full-text index."""

from __future__ import annotations

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.search.text import joined, match_expression, scope_of, separated


def finds(query: str, *texts: str) -> list[bool]:
    """Whether each text has the words of a query, as SQLite sees it."""
    database = sqlite3.connect(":memory:")
    try:
        database.execute(
            "CREATE VIRTUAL TABLE texts USING fts5 (scope, said, prefix = '2 3',"
            " tokenize = 'unicode61 remove_diacritics 2')"
        )
        for text in texts:
            values = (scope_of("app"), separated(text))
            database.execute("INSERT INTO texts VALUES (?, ?)", values)
        expression = match_expression("app", query)
        if expression is None:
            return [False] * len(texts)
        sql = "SELECT rowid FROM texts WHERE texts MATCH ?"
        found = {row[0] for row in database.execute(sql, (expression,))}
        return [number in found for number in range(1, len(texts) + 1)]
    finally:
        database.close()


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("hello", "Hello, world"),
        ("world hello", "Hello, world"),
        ('"hello world"', "Hello, world"),
        ("wor", "Hello, world"),
        ("uber", "Über uns"),
        ("データ", "大きなデータベースです"),
        ("京都", "東京都に住む"),
        ("数据库", "我们的数据库很快"),
        ("데이터", "빅데이터베이스"),
        ("ภาษา", "ฉันพูดภาษาไทย"),
        ("database 数据", "a database: 数据库"),
        ("foo.bar", "call foo.bar() now"),
        ("don't", "I don't know"),
        ('say "', "she can say it"),
    ],
)
def test_query_finds_text(query: str, text: str) -> None:
    assert finds(query, text) == [True]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("hell world", "Hello, world"),
        ('"world hello"', "Hello, world"),
        ("京都", "京の都"),
        ("", "anything"),
        ('" * AND', "anything"),
        ("NOT nothing", "anything"),
        ("said:anything", "anything else"),
    ],
)
def test_query_does_not_find_text(query: str, text: str) -> None:
    assert finds(query, text) == [False]


@given(st.text())
def test_any_query_is_a_valid_expression(query: str) -> None:
    finds(query, "a text")


@given(st.text())
def test_stored_text_is_joined_to_the_original(text: str) -> None:
    assert joined(separated(text)) == joined(text)


@given(st.lists(st.sampled_from([*"ab日本語 한"]), min_size=1).map("".join))
def test_text_is_found_by_each_of_its_words(text: str) -> None:
    for word in text.split():
        assert finds(f'"{word}"', f"before {text} after") == [True]


def test_query_of_one_app_finds_nothing_of_another() -> None:
    database = sqlite3.connect(":memory:")
    try:
        database.execute("CREATE VIRTUAL TABLE texts USING fts5 (scope, said)")
        for app in ("app", "app2", "ap"):
            database.execute("INSERT INTO texts VALUES (?, ?)", (scope_of(app), f"of {app}"))
        sql = "SELECT said FROM texts WHERE texts MATCH ?"
        expression = match_expression("app", "of")
        assert database.execute(sql, (expression,)).fetchall() == [("of app",)]
    finally:
        database.close()
