"""Files as people have them: what is taken, as what, and what the rest is called."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import tarfile
import unicodedata
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from dipole.errors import InvalidInput, TooLarge
from dipole_trainer.datasets import pairs, prompts, uploads

CASES = Path(__file__).resolve().parents[2] / "cases"
PROMPTS = [{"prompt": "a red square"}, {"prompt": "a blue circle"}]
LINES = b'{"prompt": "a red square"}\n{"prompt": "a blue circle"}\n'


def picture(colour: str = "red", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, kind, lossless=True)
    return buffer.getvalue()


def as_text(data: bytes) -> str:
    return base64.b64encode(data).decode()


RED, BLUE = picture("red"), picture("blue", "WEBP")


def take(data: bytes, name: str = "file.jsonl", max_bytes: int = 2**20) -> tuple[str, bytes]:
    """(kind, the lines as they are kept)."""
    target = io.BytesIO()
    kind, checked = uploads.check_upload(io.BytesIO(data), target, filename=name, field="file", max_bytes=max_bytes)
    assert checked.bytes == len(target.getvalue())
    return kind, target.getvalue()


def take_prompts(data: bytes, name: str = "file.jsonl") -> list[dict[str, Any]]:
    kind, kept = take(data, name)
    assert kind == "prompts"
    return [each.model_dump(exclude_none=True) for each in prompts.read_prompts(io.BytesIO(kept), field="file")]


def take_pairs(folder: Path, data: bytes, name: str = "file.jsonl") -> list[list[tuple[int, ...]]]:
    """The first pixel of either image of each row, by way of the kept file, as training reads it."""
    kind, kept = take(data, name)
    assert kind == "pairs"
    path = folder / "kept.jsonl"
    path.write_bytes(kept)
    starts = sorted(start for rows in pairs.index_pairs(path).values() for start in rows)
    return [[tuple(image[0, 0].tolist()) for image in pairs.load_pair_images(path, start)] for start in starts]


def refusal(data: bytes, name: str = "file.jsonl") -> str:
    with pytest.raises(InvalidInput) as caught:
        take(data, name)
    assert caught.value.field is not None
    assert caught.value.field.startswith("file")
    return str(caught.value)


COLOURS = [[(255, 0, 0), (0, 0, 255)]]


def row(chosen: Any = None, rejected: Any = None, **more: Any) -> bytes:
    sides = {"chosen": chosen or as_text(RED), "rejected": rejected or as_text(BLUE)}
    return json.dumps({"prompt": "a", **sides, **more}).encode() + b"\n"


# ---- prompts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("bom.jsonl", {"prompt": "a photo of a red square"}),
        ("plain.txt", {"prompt": "a photo of a red square"}),
        ("prompts.txt", {"prompt": "a red square"}),
        (
            "geneval-metadata.jsonl",
            {
                "prompt": "a photo of a bench",
                "metadata": {"tag": "single_object", "include": [{"class": "bench", "count": 1}]},
            },
        ),
    ],
)
def test_a_stranger_s_prompts_are_taken(name: str, first: dict[str, Any]) -> None:
    found = take_prompts((CASES / name).read_bytes(), name)
    assert found[0] == first
    assert len(found) == 2


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("text.csv", "file is a CSV file: send JSON lines"),
        ("comfy-zip-text.png", "file is a PNG image: send"),
        ("phone-mpo.jpg", "file is a JPEG image: send"),
        ("pairs-relative-path.jsonl", "file[1].chosen is the path of an image, 'images/000.png': send a zip or tar"),
        ("surrogate-meta.jsonl", "half of a character"),
    ],
)
def test_a_stranger_s_file_is_refused_for_what_it_is(name: str, what: str) -> None:
    assert what in refusal((CASES / name).read_bytes(), name)


@pytest.mark.parametrize(
    "data",
    [
        LINES,
        b"\xef\xbb\xbf" + LINES,
        LINES.replace(b"\n", b"\r\n"),
        LINES.replace(b"\n", b"\r"),
        b"\r\n \n" + LINES,
        LINES.rstrip(),
    ],
)
def test_lines_end_as_anybody_s_do(data: bytes) -> None:
    """Byte order mark, CRLF, CR, blank lines, no last end: the same prompts, and nothing of it is kept."""
    assert take_prompts(data) == PROMPTS
    assert not take(data)[1].startswith(b"\xef")
    assert b"\r" not in take(data)[1]


def test_plain_lines_are_kept_byte_for_byte() -> None:
    odd = '{"prompt":  "é \\u00e9", "metadata": {"n": 1.50}}\n\n{"prompt": "x"}'.encode()
    assert take(odd) == ("prompts", odd)


def test_text_is_prompts_when_it_is_named_so() -> None:
    """Only a .txt file: anything else that is text is told so."""
    text = 'a red square\r\n\r\n  ein Löwe: „groß“  \na blue circle, "quoted"'.encode()
    found = [{"prompt": each} for each in ("a red square", "ein Löwe: „groß“", 'a blue circle, "quoted"')]
    assert take_prompts(text, "P.TXT") == found
    assert take_prompts(LINES, "p.txt") == PROMPTS
    for name in ("p.jsonl", "p", "p.md"):
        assert refusal(text, name).startswith("file is plain text: send JSON lines")
    odd = [
        "BMW on a road",
        "[V] dog",
        "{red|blue} car",
        "<lora:x:1> cat",
        "Rar! a poster",
        "II*",
        '"quoted"',
        "1, 2, 3",
    ]
    for first in odd:
        assert take_prompts(f"{first}\nx\n".encode(), "p.txt") == [{"prompt": first}, {"prompt": "x"}]
    assert "line 2: the line is not in UTF-8" in refusal("fine\nein Löwe\n".encode("latin-1"), "p.txt")
    assert "line 2" in refusal(b"fine\n" + b"x" * 10_001, "p.txt")
    assert refusal(text.decode().encode("utf-16"), "p.txt").startswith("file is text in UTF-16: ")


def test_geneval_s_fields_become_metadata_and_others_do_not() -> None:
    """As `include` and `exclude` stand in the public file; a misspelt field of ours is still named."""
    line = {"tag": "counting", "include": [{"class": "clock", "count": 2}], "exclude": [{"class": "clock", "count": 3}]}
    (found,) = take_prompts(json.dumps({**line, "prompt": "a photo of two clocks"}).encode())
    assert found == {"prompt": "a photo of two clocks", "metadata": line}
    assert "metdata" in refusal(b'{"prompt": "x", "metdata": {}}')
    assert "line 1" in refusal(json.dumps({**line, "prompt": ""}).encode())
    assert "line 1" in refusal(json.dumps({**line, "prompt": "x", "metadata": {}}).encode())
    assert "line 1" in refusal(b'{"prompt": "x", "include": [{"n": NaN}]}')


# ---- what a file is -------------------------------------------------------------------------------------------------


def archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "name", "what"),
    [
        (LINES.decode().encode("utf-16"), "p.jsonl", "text in UTF-16"),
        (LINES.decode().encode("utf-16-be"), "p.jsonl", "text in UTF-16"),
        (LINES.decode().encode("utf-32"), "p.jsonl", "text in UTF-32"),
        (gzip.compress(LINES, mtime=0), "p.jsonl.gz", "a gzip file"),
        (b'"prompt","tag"\n"a red square","x"\n', "p.jsonl", "a CSV file"),
        (b"id;Prompt\n1;a red square\n", "p.txt", "a CSV file"),
        (b"a red square\tx\n", "p.tsv", "a CSV file"),
        (json.dumps(PROMPTS).encode(), "p.json", "a JSON array"),
        (json.dumps(PROMPTS, indent=2).encode(), "p.json", "a JSON array"),
        (json.dumps(PROMPTS[0], indent=2).encode(), "p.json", "one JSON document of several lines"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "p.jsonl", "an HTML page"),
        (b"\n<HTML>\n", "p.txt", "an HTML page"),
        (b"%PDF-1.7\n", "p.txt", "a PDF document"),
        (b"", "p.jsonl", "empty"),
        (b"\n \r\n\n", "p.txt", "empty"),
        (b"\xef\xbb\xbf", "p.jsonl", "empty"),
        (bytes(100), "p.jsonl", "binary data"),
        (bytes(range(256)), "p.txt", "binary data"),
        (b"ARROW1\x00\x00", "p.arrow", "an Arrow file"),
    ],
)
def test_what_is_not_taken_is_named(data: bytes, name: str, what: str) -> None:
    """With a line of what is wanted."""
    assert refusal(data, name).startswith(f'file is {what}: send JSON lines in UTF-8, {{"prompt"')


def test_a_line_that_is_no_json_says_why() -> None:
    assert "no comma ends a JSON line" in refusal(b'{"prompt": "a"},\n{"prompt": "b"}\n')
    assert refusal(LINES + b'{"prompt": "L\xf6we"}\n') == "line 3: the line is not in UTF-8: save the file as UTF-8"
    assert refusal(b"{prompt: 'x'}\n").startswith("line 1: Invalid JSON")
    assert refusal(b'{"prompt": "x", "metadata": {"a": "\\u0000"}}').startswith("line 1: metadata.a: a NUL character")
    assert "metadata: a key with a NUL" in refusal(b'{"prompt": "x", "metadata": {"a\\u0000": 1}}')
    assert "not finite" in refusal(b'{"prompt": "x", "metadata": {"a": [1e999]}}')
    assert refusal(b'{"prompt": "x", "metadata": {"n": ' + b"9" * 5000 + b"}}").startswith("line 1: ")
    assert take_prompts(b'{"prompt": "x", "prompt": "y", "metadata": {"n": ' + b"9" * 40 + b"}}") == [
        {"prompt": "y", "metadata": {"n": int("9" * 40)}}
    ]
    with pytest.raises(TooLarge, match="line 1 exceeds"):
        take(b'{"prompt": "' + "é".encode() * 2**20, max_bytes=2**22)


# ---- pairs ----------------------------------------------------------------------------------------------------------


def broken_lines(text: str) -> str:
    return "\r\n".join(text[at : at + 76] for at in range(0, len(text), 76)) + "\n"


@pytest.mark.parametrize(
    "write",
    [
        as_text,
        lambda data: broken_lines(as_text(data)),
        lambda data: f"data:image/png;base64,{as_text(data)}",
        lambda data: f"data:;base64,{broken_lines(as_text(data))}",
        lambda data: base64.urlsafe_b64encode(data).decode(),
        lambda data: as_text(data).rstrip("="),
        lambda data: {"bytes": as_text(data), "path": "images/a.png"},
        lambda data: {"bytes": as_text(data)},
    ],
)
def test_base64_of_any_common_form_is_taken(write: Any, tmp_path: Path) -> None:
    """In JSON lines and as text in Parquet alike."""
    assert take_pairs(tmp_path, row(write(RED), write(BLUE))) == COLOURS
    if isinstance(write(RED), str):
        table = pa.table({"prompt": ["a"], "chosen": [write(RED)], "rejected": [write(BLUE)]})
        assert take_pairs(tmp_path, parquet_of(table), "p.parquet") == COLOURS


def parquet_of(table: Any) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(table, sink)
    return sink.getvalue()


@pytest.mark.parametrize("text", [pa.string(), pa.large_string()])
def test_parquet_of_text_and_of_structs(text: Any, tmp_path: Path) -> None:
    """As the two strangers' files have it: base64 as text; and {bytes, path}."""
    table = pa.table({
        "prompt": ["a"], "chosen": pa.array([as_text(RED)], text), "rejected": pa.array([as_text(BLUE)], text),
    })  # fmt: skip
    assert take_pairs(tmp_path, parquet_of(table)) == COLOURS
    struct = pa.struct([("bytes", pa.binary()), ("path", text)])
    sides = {
        side: pa.array([{"bytes": data, "path": "0.png"}], struct)
        for side, data in (("chosen", RED), ("rejected", BLUE))
    }
    assert take_pairs(tmp_path, parquet_of(pa.table({"prompt": ["a"], **sides}))) == COLOURS


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("images/000.png", "is the path of an image, 'images/000.png'"),
        (r"C:\images\a.JPG", "is the path of an image"),
        ({"bytes": None, "path": "000.webp"}, "is the path of an image"),
        ("https://example.org/a.png", "is a URL"),
        ("s3://bucket/a.png", "is a URL"),
        ("data:image/svg+xml,<svg/>", "is a data: URL without ;base64"),
        ("not base64!", "is not valid base64"),
        (as_text(b"GIF89a" + bytes(20)), "is a GIF image: PNG, WebP and JPEG are taken"),
        (as_text(b"\x00\x00\x00\x18ftypheic" + bytes(20)), "is a HEIC image"),
        (as_text(b"<html>404</html>"), "is an HTML page"),
        (as_text(gzip.compress(RED, mtime=0)), "is a gzip file"),
    ],
)
def test_a_side_that_is_no_image_is_told_as_what_it_is(value: Any, what: str) -> None:
    assert refusal(row() + row(value)).startswith(f"file[2].chosen {what}")
    if isinstance(value, str):
        table = pa.table({"prompt": ["a"], "chosen": [as_text(RED)], "rejected": [value]})
        assert refusal(parquet_of(table)).startswith(f"file[1].rejected {what}")


@pytest.mark.parametrize("name", ["comfy-zip-text.png", "phone-mpo.jpg"])
def test_pictures_of_phones_and_workflows_are_pairs(name: str, tmp_path: Path) -> None:
    """A JPEG with a second picture behind it is its first; a PNG whose text unpacks to megabytes is a PNG."""
    data = (CASES / name).read_bytes()
    assert len(take_pairs(tmp_path, row(as_text(data)))) == 1


# ---- archives -------------------------------------------------------------------------------------------------------

PATHS = row("images/000.png", "images/001.webp")
IMAGES = {"images/000.png": RED, "images/001.webp": BLUE}


def tar_of(members: dict[str, bytes], *links: tuple[str, str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
        for name, target, kind in links:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            file.addfile(info)
    return buffer.getvalue()


@pytest.mark.parametrize("pack", [lambda members: archive(**members), tar_of])
def test_images_beside_the_lines_are_taken(pack: Any, tmp_path: Path) -> None:
    """From the lines' folder or from the top, with ./ and \\ and {bytes, path}; other members do not matter."""
    for members in (
        {"pairs.jsonl": PATHS, **IMAGES},
        {"./set/pairs.jsonl": PATHS, **{f"./set/{name}": data for name, data in IMAGES.items()}},
        {"set/pairs.ndjson": PATHS, **IMAGES, "README.md": b"x", "info.json": b"{}", "__MACOSX/set/._pairs.jsonl": b""},
        {"set/pairs.json": row("../images/000.png", ".\\..\\images\\001.webp"), **IMAGES},
        {"pairs.jsonl": b"\xef\xbb\xbf" + row({"bytes": None, "path": "images/000.png"}).strip() + b"\r", **IMAGES},
        {"pairs.jsonl": row()},
    ):
        assert take_pairs(tmp_path, pack(members), "pairs.zip") == COLOURS


def test_an_archive_reads_nothing_but_itself(tmp_path: Path) -> None:
    """Paths above it, absolute ones and links lead nowhere, whatever lies there."""
    secret = tmp_path / "secret.png"
    secret.write_bytes(RED)
    for path in (str(secret), "../" * 20 + str(secret)[1:], "/etc/passwd.png", "images/none.png"):
        for data in (archive(**{"p.jsonl": row(path), **IMAGES}), tar_of({"p.jsonl": row(path), **IMAGES})):
            assert refusal(data).startswith("file[1].chosen names ")
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
        data = tar_of({"p.jsonl": row("a.png")}, ("a.png", str(secret), kind))
        assert refusal(data).startswith("file[1].chosen names 'a.png', which the archive does not hold as a file")
    link = zipfile.ZipInfo("a.png")
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO(archive(**{"p.jsonl": row("a.png")}))
    with zipfile.ZipFile(buffer, "a") as file:
        file.writestr(link, str(secret))
    assert refusal(buffer.getvalue()).startswith("file[1].chosen names 'a.png'")


def test_archives_are_bounded() -> None:
    """A member that unpacks without end is refused after its bound; one image named by every row, after the file's."""
    zeros = io.BytesIO()
    with zipfile.ZipFile(zeros, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("p.jsonl", row("a.png"))
        file.writestr("a.png", bytes(64 * 2**20))
    assert len(zeros.getvalue()) < 100_000
    assert "at most 33554432 are taken" in refusal(zeros.getvalue())
    again = archive(**{"p.jsonl": row("a.png", "a.png") * 20_000, "a.png": picture()})
    with pytest.raises(TooLarge, match="exceeds 2097152 bytes"):
        take(again)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (archive(**IMAGES), "is a zip archive with no file of JSON lines"),
        (tar_of(IMAGES), "is a tar archive with no file of JSON lines"),
        (archive(**{"a.jsonl": PATHS, "b.jsonl": PATHS}), "is a zip archive with several files of JSON lines (a.jsonl"),
        (archive(**{"a.jsonl": PATHS.decode().encode("utf-16")}), "is a zip archive whose a.jsonl is text in UTF-16"),
        (archive(**{"p.jsonl": PATHS, **IMAGES})[:-30], "is a zip archive that cannot be read"),
        (tar_of({"p.jsonl": row() * 9})[:600], "is a tar archive that cannot be read"),
        (parquet_of(pa.table({"prompt": ["a"]})), "is a Parquet file without chosen, rejected"),
        (parquet_of(pa.table({"text": ["a"] * 9}))[:-9], "is a Parquet file that cannot be read"),
    ],
)
def test_a_container_that_cannot_be_taken_is_named(data: bytes, what: str) -> None:
    assert refusal(data).startswith(f"file {what}")


def test_a_broken_line_of_an_archive_is_named_like_any_other() -> None:
    for line in (b"not json\n", b'{"prompt": "a"}\n', row(prompt=""), row(chosen=as_text(b"GIF89a" + bytes(9)))):
        assert "2" in refusal(archive(**{"p.jsonl": row() + line}))
    assert "holds no pairs" in refusal(
        parquet_of(pa.table({each: pa.array([], pa.string()) for each in ("prompt", "chosen", "rejected")}))
    )


def test_no_other_error_reaches_the_caller() -> None:
    """Every head of every form, cut anywhere: taken, or refused as what it is."""
    forms = [LINES, row(), archive(**{"p.jsonl": PATHS, **IMAGES}), tar_of({"p.jsonl": PATHS, **IMAGES})]
    for data in forms:
        for end in range(0, len(data), max(1, len(data) // 5)):
            with contextlib.suppress(InvalidInput):
                take(data[:end])


@pytest.mark.parametrize(
    "data",
    [
        b'Prompts,Category\r\n"A red colored car.",Colors\r\n',
        b"Prompt\tCategory\tChallenge\nbond\tAbstract\tBasic\n",
        b"image_id;caption\n7;a cat\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 12\n",
    ],
)
def test_a_table_or_a_pointer_called_txt_is_never_trained_on(data: bytes) -> None:
    """DrawBench's and PartiPrompts' headers, COCO's, and what a clone without git-lfs leaves."""
    with pytest.raises(InvalidInput, match=r"is a CSV file: send|is a pointer of Git LFS"):
        take(data, "prompts.txt")


@pytest.mark.parametrize("line", ["a cat, a dog, prompt", "[[V]] dog", '"Prompt, please", says a sign'])
def test_a_prompt_that_looks_like_another_file_is_a_prompt(line: str) -> None:
    assert take_prompts(line.encode(), "prompts.txt") == [{"prompt": line}]


@pytest.mark.parametrize(("name", "lines"), [("a.txt", [b"a cat", b"a dog"]), ("a.jsonl", LINES.splitlines())])
def test_files_that_were_joined_have_a_byte_order_mark_in_the_middle(name: str, lines: list[bytes]) -> None:
    assert take_prompts(b"\n".join(b"\xef\xbb\xbf" + line for line in lines), name) == take_prompts(
        b"\n".join(lines), name
    )


@pytest.mark.parametrize("line_form", ["NFC", "NFD"])
def test_an_archive_s_names_are_found_however_their_letters_are_made(tmp_path: Path, line_form: Any) -> None:
    """macOS writes "ü" as two characters, JSON has mostly one."""
    other = "NFD" if line_form == "NFC" else "NFC"
    line = {"prompt": "a", "chosen": unicodedata.normalize(line_form, "bild ü.png"), "rejected": "2.webp"}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("pairs.jsonl", json.dumps(line))
        archive.writestr(unicodedata.normalize(other, "bild ü.png"), RED)
        archive.writestr("2.webp", BLUE)
    assert take_pairs(tmp_path, buffer.getvalue(), "pairs.zip") == [[(255, 0, 0), (0, 0, 255)]]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"caption": "a cat", "jpg_0": "aa"}', "line 1: prompt is missing, the line's fields are 'caption', 'jpg_0'"),
        (b'{"prompt": "a cat", "seed": 7}', "line 1: seed is no field of a line: put what rewards are to read"),
    ],
)
def test_another_tool_s_fields_are_named(line: bytes, said: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        take(line)
    assert str(caught.value).startswith(said)
