"""The names of uploads: decoding, and conversion into safe names."""

from __future__ import annotations

import unicodedata

import pytest

from server.uploads.names import (
    MAX_NAME_BYTES,
    decode_filename,
    parse_content_disposition,
    safe_name,
)

HEAD = 'form-data; name="file"; '


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ('filename="plan.txt"', "plan.txt"),
        ("filename=plan.txt", "plan.txt"),
        ('FileName = "plan.txt"', "plan.txt"),
        ('filename="план.txt"', "план.txt"),
        ('filename="a; b; c.txt"', "a; b; c.txt"),
        ('filename="a\\"b.txt"', 'a"b.txt'),
        ('filename="a%22b.txt"', 'a"b.txt'),
        ('filename="C:\\new\\x.txt"', "C:\\new\\x.txt"),
        ('filename="%D0%BF%D0%BB%D0%B0%D0%BD.txt"', "план.txt"),
        ('filename="100%.txt"', "100%.txt"),
        ('filename="100%25.txt"', "100%.txt"),
        ('filename="%ff.txt"', "%ff.txt"),
        ("filename*=UTF-8''%D0%BF%D0%BB%D0%B0%D0%BD.txt", "план.txt"),
        ("filename*=utf-8'ru'%D0%BF.txt; filename=x.txt", "п.txt"),
        ("filename=\"x.txt\"; filename*=UTF-8''%D0%BF.txt", "п.txt"),
        ("filename*=iso-8859-1''%FC.txt", "ü.txt"),
        ("filename=\"x.txt\"; filename*=UTF-8''%ff.txt", "x.txt"),
        ("filename=\"x.txt\"; filename*=zlib''%ff", "x.txt"),
        ("filename*0*=UTF-8''%D0%BF; filename*1=lan.txt", "пlan.txt"),
        ('filename*0="long "; filename*1="name.txt"', "long name.txt"),
        ('filename="=?UTF-8?B?0L/Qu9Cw0L0udHh0?="', "план.txt"),
        ('filename="=?utf-8?Q?=D0=BF.txt?="', "п.txt"),
        ('filename="\udcfc.txt"', "ü.txt"),
        ("", ""),
        ('filename=""', ""),
    ],
)
def test_filename_is_decoded(parameters: str, name: str) -> None:
    found = parse_content_disposition(HEAD + parameters)
    assert found["name"] == "file"
    assert decode_filename(found) == name


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("план.txt", "план.txt"),
        ("отчёт.txt", "отчёт.txt"),
        ("报告.pdf", "报告.pdf"),
        ("報告（最終）.pdf", "報告_最終_.pdf"),
        ("دليل.txt", "دليل.txt"),
        ("हिन्दी.md", "हिन्दी.md"),
        ("😀👍🏽.png", "😀👍🏽.png"),
        ("👨‍👩‍👧.png", "👨👩👧.png"),
        ("Cafe\u0301.txt", "Café.txt"),
        ("Übung – 文件.pdf", "Übung_文件.pdf"),
        ("report (1).tar.gz", "report_1_.tar.gz"),
        ("../../etc/passwd", "passwd"),
        ("..\\..\\x.txt", "x.txt"),
        ("a/", "file"),
        ("..", "file"),
        ("", "file"),
        (" ", "file"),
        (".bashrc", "bashrc"),
        ("-rf", "rf"),
        ("--help.txt", "help.txt"),
        ("\u202egpj.exe", "gpj.exe"),
        ("a\u200bb\u2066\ufeff.txt", "ab.txt"),
        ("a\u3164\ufe0fb.txt", "ab.txt"),
        ("a\x00\x1b[31m\nb.txt", "a_31m_b.txt"),
        ("a\u2215b\u2044c.txt", "a_b_c.txt"),
        ("\u0301x.txt", "x.txt"),
        ("CON", "_CON"),
        ("nul.txt", "_nul.txt"),
        ("console.txt", "console.txt"),
        ("con.", "_con"),
        ("\ud800.txt", "_.txt"),
    ],
)
def test_safe_name_keeps_letters_and_digits_of_every_script(name: str, kept: str) -> None:
    assert safe_name(name) == kept


@pytest.mark.parametrize("character", ["x", "я", "报", "😀", "e\u0323\u0302", "क\u094d"])
@pytest.mark.parametrize("ending", [".txt", ".документ", "", "." + "x" * 100])
def test_long_name_is_truncated_between_characters_and_keeps_suffix(
    character: str, ending: str
) -> None:
    unit = unicodedata.normalize("NFC", character)
    for more in range(4):
        name = safe_name("y" * more + character * 400 + ending)
        assert MAX_NAME_BYTES - 12 <= len(name.encode()) <= MAX_NAME_BYTES
        if len(ending) < 30:
            assert name.endswith(ending)
            assert name.removesuffix(ending).lstrip("y").replace(unit, "") == ""


def test_unterminated_quote_is_parsed_in_linear_time() -> None:
    assert decode_filename(parse_content_disposition(HEAD + 'filename="' + "\\\\" * 4000)) != "x"


def test_different_names_stay_different() -> None:
    names = ("план.txt", "отчёт.txt", "报告.txt", "報告.txt")
    assert len({safe_name(name) for name in names}) == len(names)
