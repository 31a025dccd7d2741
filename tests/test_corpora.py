"""Text is found and read as it is, what is no text is named, downloads survive breaks."""

import errno
import gzip
import io
import itertools
import os
import ssl
import sys
import sysconfig
import threading
import types
import urllib.error
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from support import corpora
from support.corpora import download, fineweb_edu_shards, open_corpus

needs_links = pytest.mark.skipif(os.name == "nt", reason="there, links need a privilege")


def open_paths(tmp_path, *paths, megabytes=1.0, seed=1, language=None):
    knobs = (megabytes, seed, language)
    return open_corpus(tuple(map(str, paths)), tmp_path / "data", tmp_path, *knobs)


def texts_of(corpus):
    """The text of every document, whole."""
    return ["".join(text for text, _ in document.pieces) for document in corpus.documents()]


def read(tmp_path, *paths):
    return texts_of(open_paths(tmp_path, *paths))


def save(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ------------------------------------------------------------------------------- files and folders


def test_a_folder_gives_its_texts_in_order_and_leaves_out_the_rest(tmp_path):
    for name in ("b.txt", "a/z.md", "a/b/c.py", "c.TXT", ".hidden.txt", ".git/d.txt", "e.png"):
        save(tmp_path / "texts" / name, name)
    assert read(tmp_path, tmp_path / "texts") == ["b.txt", "c.TXT", "a/z.md", "a/b/c.py"]


def test_what_is_left_out_of_a_folder_is_counted_by_suffix(tmp_path, capsys):
    for name in ("a.txt", "sub/b.md", ".hidden.csv", "data/x/train.bin", "data/x/meta.json"):
        save(tmp_path / "texts" / name, name)
    read(tmp_path, tmp_path / "texts")
    assert capsys.readouterr().err == ""
    for name in ("c.csv", "sub/d.markdown", "sub/e.csv", "log.jsonl", "Makefile"):
        save(tmp_path / "texts" / name, name)
    read(tmp_path, tmp_path / "texts")
    expected = "files to read: 2, skipped: 5 (.csv, Makefile, log.jsonl, .markdown)\n"
    assert capsys.readouterr().err == expected


@needs_links
def test_a_linked_folder_is_read_and_no_folder_twice(tmp_path):
    save(tmp_path / "elsewhere" / "far.txt", "far")
    save(tmp_path / "texts" / "near.txt", "near")
    for name, target in (("a", "elsewhere"), ("b", "elsewhere"), ("c", "texts")):
        (tmp_path / "texts" / name).symlink_to(tmp_path / target, target_is_directory=True)
    assert read(tmp_path, tmp_path / "texts") == ["near", "far"]


@needs_links
def test_a_link_to_nothing_is_named(tmp_path):
    save(tmp_path / "texts" / "a.txt", "a")
    (tmp_path / "texts" / "b.txt").symlink_to(tmp_path / "nowhere.txt")
    with pytest.raises(ValueError, match=r"b\.txt is neither a file nor a link to one"):
        open_paths(tmp_path, tmp_path / "texts")


def test_a_folder_that_cannot_be_read_is_named(tmp_path, monkeypatch):
    save(tmp_path / "texts" / "secret" / "a.txt", "a")
    save(tmp_path / "texts" / "b.txt", "b")
    scandir = os.scandir

    def scandir_or_refuse(path):
        if str(path).endswith("secret"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scandir_or_refuse)
    with pytest.raises(ValueError, match=r"secret cannot be read \(Permission denied\)"):
        open_paths(tmp_path, tmp_path / "texts")


def test_several_paths_come_in_the_order_given(tmp_path):
    first, second = save(tmp_path / "1.txt", "one"), save(tmp_path / "2.txt", "two")
    assert read(tmp_path, second, first) == ["two", "one"]


def test_a_file_named_outright_is_text_whatever_its_suffix(tmp_path):
    assert read(tmp_path, save(tmp_path / "poem.tex", "text")) == ["text"]


def test_a_corpus_of_files_is_named_after_the_first(tmp_path):
    assert (
        open_paths(tmp_path, save(tmp_path / "poems.txt.gz", gzip.compress(b"x"))).name == "poems"
    )
    assert open_paths(tmp_path, tmp_path).name == tmp_path.name


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(
        ValueError, match=r"no file or folder .*nothing\.txt; named corpora.*stories"
    ):
        open_paths(tmp_path, tmp_path / "nothing.txt")


def test_a_folder_without_text_is_named(tmp_path):
    save(tmp_path / "pictures" / "a.png", "x")
    with pytest.raises(ValueError, match=r"pictures contains no \.txt"):
        open_paths(tmp_path, tmp_path / "pictures")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_sent_to_standard_input(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match=r"use - \(standard input\)"):
        open_paths(tmp_path, tmp_path / "pipe")


def test_a_named_corpus_does_not_mix_with_files(tmp_path):
    with pytest.raises(ValueError, match="stories is a corpus of its own"):
        open_paths(tmp_path, "stories", save(tmp_path / "a.txt", "a"))


def test_standard_input_can_be_gone_through_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("中文 text".encode())))
    corpus = open_paths(tmp_path, "-")
    assert texts_of(corpus) == texts_of(corpus) == ["中文 text"]
    assert corpus.name == "stdin"
    with pytest.raises(ValueError, match="named twice"):
        open_paths(tmp_path, "-", "-")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_json_from_standard_input_is_not_taken_for_text(tmp_path, monkeypatch, mark):
    lines = io.BytesIO((mark + '{"text": "one"}\n{"text": "two"}\n').encode())
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(lines))
    with pytest.raises(ValueError, match=r"standard input is JSON.*save it as .*\.jsonl"):
        open_paths(tmp_path, "-")


# ------------------------------------------------------------------------------- what is in a file


@pytest.fixture(params=[1, 2, 3, 1_000_000])
def chunk_bytes(request, monkeypatch):
    """Files read in chunks so small that everything falls on a border, and in large ones."""
    monkeypatch.setattr(corpora, "CHUNK_BYTES", request.param)
    return request.param


def test_characters_and_line_ends_survive_the_borders_of_chunks(tmp_path, chunk_bytes):
    path = save(tmp_path / "a.txt", b"\xef\xbb\xbf" + "é中🙂\r\nb\rc\n\r\n".encode())
    assert read(tmp_path, path) == ["é中🙂\nb\nc\n\n"]


def test_a_file_is_read_in_pieces_that_add_up_to_its_size(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "CHUNK_BYTES", 100)
    corpus = open_paths(tmp_path, save(tmp_path / "a.txt", "中文。\n" * 100))
    (document,) = corpus.documents()
    assert max(len(text) for text, _ in document.pieces) <= 100
    assert sum(size for _, size in document.pieces) == corpus.size == 1000


def test_a_gz_file_is_unpacked(tmp_path, chunk_bytes):
    path = save(tmp_path / "a.txt.gz", gzip.compress("中文\n".encode() * 9))
    corpus = open_paths(tmp_path, path)
    assert texts_of(corpus) == ["中文\n" * 9]
    assert corpus.size == 63


def test_a_gz_file_of_several_members_counts_as_at_least_its_packed_size(tmp_path):
    text = os.urandom(3000).hex()
    packed = gzip.compress(text.encode()) + gzip.compress(b"")  # as bgzip ends its files
    corpus = open_paths(tmp_path, save(tmp_path / "a.txt.gz", packed))
    assert texts_of(corpus) == [text]
    assert corpus.size == len(packed)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: b"text, not packed"])
def test_a_damaged_gz_file_is_named(tmp_path, damage):
    path = save(tmp_path / "a.txt.gz", damage(gzip.compress(os.urandom(3000).hex().encode())))
    with pytest.raises(ValueError, match=r"a\.txt\.gz is not a complete \.gz"):
        read(tmp_path, path)


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", "é中\r\n".encode()])
def test_bytes_that_are_no_utf8_are_named_with_their_place(tmp_path, chunk_bytes, before):
    path = save(tmp_path / "a.txt", before + b"abc\xe9 d")
    with pytest.raises(ValueError, match=rf"a\.txt is not UTF-8: byte {len(before) + 3} is 0xe9"):
        read(tmp_path, path)


def test_a_character_cut_off_at_the_end_is_named(tmp_path, chunk_bytes):
    path = save(tmp_path / "a.txt", "ab中".encode()[:-1])
    with pytest.raises(ValueError, match=r"byte 2 is 0xe4; the file ends.*iconv -c -f utf-8"):
        read(tmp_path, path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
def test_utf16_and_utf32_are_recognised(tmp_path, name, encoding):
    path = save(tmp_path / name, "text".encode(encoding))
    other = "" if name == "a.jsonl" else f", or use --encoding={encoding}"
    with pytest.raises(ValueError, match=rf"is {encoding.upper()}; save it as UTF-8{other}$"):
        read(tmp_path, path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_a_binary_file_is_recognised(tmp_path, name):
    path = save(tmp_path / name, b"\x7fELF\x01\x00\x00")
    with pytest.raises(ValueError, match="is a binary file: byte 5 is zero"):
        read(tmp_path, path)


def test_datasets_of_hugging_face_are_told_how_to_become_text(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"not text.*load_dataset\('parquet', data_files='.*'"):
        open_paths(tmp_path, path)
    with pytest.raises(ValueError, match=r"load_dataset\('.*karpathy/climbmix', split='train'\)"):
        open_paths(tmp_path, "karpathy/climbmix")


def test_each_line_of_jsonl_is_a_document(tmp_path):
    lines = ['{"text": "one\\ntwo", "id": 1}', "", '{"text": "中"}', '{"text": ""}']
    path = save(tmp_path / "a.jsonl", "\ufeff" + "\r\n".join(lines))
    assert read(tmp_path, path) == ["one\ntwo", "中", ""]


def test_line_ends_in_json_become_those_of_a_text_file(tmp_path):
    path = save(tmp_path / "a.jsonl", '{"text": "a\\r\\nb\\rc\\nd"}')
    assert read(tmp_path, path) == ["a\nb\nc\nd"]


def test_halves_of_characters_in_json_are_repaired(tmp_path):
    path = save(tmp_path / "a.jsonl", '{"text": "a\\ud83d b\\ud83d\\ude42"}')
    assert read(tmp_path, path) == ["a\ufffd b🙂"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": "cut o', "not JSON"),
        ('{"content": "x", "id": 1}', "found content, id"),
        ('{"text": 5}', "found 5"),
        ('["text"]', "found list"),
        ("{}", "found nothing"),
    ],
)
def test_a_bad_line_of_jsonl_is_named_by_its_number(tmp_path, line, reason):
    path = save(tmp_path / "a.jsonl", '{"text": "good"}\n\n' + line + "\n")
    with pytest.raises(ValueError, match=rf"a\.jsonl, line 3: .*{reason}"):
        read(tmp_path, path)


def test_bad_bytes_in_jsonl_are_named_with_their_place(tmp_path):
    path = save(tmp_path / "a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n')
    with pytest.raises(ValueError, match="byte 24 is 0xff"):
        read(tmp_path, path)


# -------------------------------------------------------------------------------------- named ones


def test_stories_have_the_size_asked_for_and_held_out_ones_for_validation(tmp_path, monkeypatch):
    def generate(seed, held_out=False, language=None):
        for number in itertools.count(1):
            words = f"{'kept' if held_out else 'told'} {language} {seed} {number:06d} "
            yield types.SimpleNamespace(text=words.ljust(100))

    def floor_bits_per_byte(stories):
        (story,) = stories
        return 0.5 if story.text.startswith("told") else 0.25

    stand_in = types.SimpleNamespace(generate=generate, floor_bits_per_byte=floor_bits_per_byte)
    monkeypatch.setitem(sys.modules, "support.stories", stand_in)
    corpus = open_paths(tmp_path, "stories", megabytes=0.1, seed=7, language="zh")
    documents = list(corpus.documents())
    assert [document.split for document in documents] == ["train"] * 1000 + ["val"] * 50
    assert texts_of(corpus)[1000].startswith("kept zh 7 000001")
    assert [document.bits for document in documents] == [50.0] * 1000 + [25.0] * 50
    assert corpus.size == 105_000


def test_the_standard_library_comes_without_tests_and_tables(tmp_path, monkeypatch):
    names = ("a.py", "email/b.py", "test/c.py", "email/tests/d.py", "encodings/e.py", "f.txt")
    for name in (*names, "html/entities.py", "site-packages/torch/g.py"):
        save(tmp_path / "lib" / name, name)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "lib")})
    assert read(tmp_path, "python") == ["a.py", "email/b.py"]


def test_a_python_without_sources_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "none")})
    with pytest.raises(ValueError, match="has no source"):
        open_paths(tmp_path, "python")


@pytest.mark.skipif(not os.path.isfile(os.__file__), reason="this Python has no source files")
def test_this_machines_standard_library_is_found(tmp_path):
    corpus = open_paths(tmp_path, "python")
    assert corpus.size > 5_000_000
    documents = list(corpus.documents())
    assert 0.7 < sum(document.split == "train" for document in documents) / len(documents) < 0.95


def test_no_model_reads_the_docstrings_that_it_is_tested_with(tmp_path, monkeypatch):
    for i in range(60):
        text = f'def f():\n    """Say {i}."""\n    return {i}\n'
        save(tmp_path / "lib" / f"m{i}.py", text)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path / "lib")})
    corpus = open_paths(tmp_path, "python")
    read = [text for d, text in zip(corpus.documents(), texts_of(corpus)) if d.split == "train"]
    asked = corpus.tasks()["docstring"]
    held_out = [example["completion"] for split in ("val", "test") for example in asked[split]]
    assert len(held_out) + len(read) == 60 and held_out and read
    assert not any(docstring in text for docstring in held_out for text in read)


def test_tinystories_are_split_at_their_separators(tmp_path, monkeypatch, chunk_bytes):
    content = {
        "TinyStories-train.txt": "One.\n\nMore.\n<|endoftext|>\nTwo.\n<|endoftext|>\n",
        "TinyStories-valid.txt": "Three.\n",
    }
    monkeypatch.setattr(corpora, "download", lambda url, path, _: save(path, content[path.name]))
    corpus = open_paths(tmp_path, "tinystories")
    found = [
        (document.split, text)
        for document, text in zip(corpus.documents(), texts_of(corpus), strict=True)
        if text
    ]
    assert found == [("train", "One.\n\nMore."), ("train", "Two."), ("val", "Three.")]
    assert corpus.split_rule


def test_shakespeare_is_one_document_checked_by_its_sum(tmp_path, monkeypatch):
    asked = []

    def fetch(*arguments):
        asked.append(arguments)
        return save(arguments[1], "First Citizen:")

    monkeypatch.setattr(corpora, "download", fetch)
    assert read(tmp_path, "shakespeare") == ["First Citizen:"]
    ((url, path, sha256),) = asked
    assert url.startswith("https://") and len(sha256) == 64
    assert path == tmp_path / "data" / "shakespeare" / "raw" / "input.txt"


def test_as_many_shards_of_fineweb_edu_as_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(corpora, "download", lambda url, path: path)
    shards = fineweb_edu_shards(tmp_path, 2)
    assert [path.name for path in shards["val"]] == ["finewebedu_val_000000.bin"]
    assert [path.name for path in shards["train"]] == [
        "finewebedu_train_000001.bin",
        "finewebedu_train_000002.bin",
    ]
    for number in (0, 100):
        with pytest.raises(ValueError, match=f"shards={number}: expected 1 to 99"):
            fineweb_edu_shards(tmp_path, number)


# --------------------------------------------------------------------------------------- downloads

CONTENT = bytes(range(256)) * 40


class Server(ThreadingHTTPServer):
    """Serves CONTENT on this machine, with faults as told; remembers what it was asked for."""

    knows_ranges = True
    breaks_after = ()  # for one answer after another: the bytes after which it breaks off
    content = CONTENT

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked = []
        self.url = f"http://127.0.0.1:{self.server_port}/input.txt"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        """Nothing: tests are quiet."""

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        content = self.server.content
        if self.path != "/input.txt":
            return self.send_error(404)
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if not self.server.knows_ranges:
            start = 0
        if start >= len(content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(content)}")
            return self.end_headers()
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        breaks = list(self.server.breaks_after)
        number = len(self.server.asked) - 1
        end = start + breaks[number] if number < len(breaks) else None
        self.wfile.write(content[start:end])


@pytest.fixture
def server():
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_download_arrives_whole_and_is_not_repeated(server, tmp_path):
    path = tmp_path / "raw" / "input.txt"
    for _ in range(2):
        assert download(server.url, path).read_bytes() == CONTENT
    assert server.asked == [None]
    assert list(path.parent.iterdir()) == [path]


def test_a_download_that_breaks_off_goes_on_where_it_was(server, tmp_path):
    server.breaks_after = (1000, 500)
    assert download(server.url, tmp_path / "x").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-", "bytes=1500-"]


def test_a_server_without_ranges_sends_everything_again(server, tmp_path):
    server.knows_ranges, server.breaks_after = False, (1000,)
    assert download(server.url, tmp_path / "x").read_bytes() == CONTENT
    assert server.asked == [None, "bytes=1000-"]


def test_a_server_that_gets_no_further_ends_the_download(server, tmp_path):
    server.knows_ranges, server.breaks_after = False, (1000,) * 9
    with pytest.raises(
        ValueError, match=r"could not be downloaded .*connection was lost.* are kept"
    ):
        download(server.url, tmp_path / "x")
    assert len(server.asked) == 2
    assert (tmp_path / "x.part").stat().st_size == 1000


def test_the_next_try_takes_up_what_was_kept(server, tmp_path):
    save(tmp_path / "x.part", CONTENT[:4000])
    assert download(server.url, tmp_path / "x").read_bytes() == CONTENT
    assert server.asked == ["bytes=4000-"]


def test_a_part_that_is_already_whole_is_recognised(server, tmp_path):
    save(tmp_path / "x.part", CONTENT)
    assert download(server.url, tmp_path / "x").read_bytes() == CONTENT


def test_a_part_that_is_too_long_is_fetched_again(server, tmp_path):
    save(tmp_path / "x.part", CONTENT + b"more")
    assert download(server.url, tmp_path / "x").read_bytes() == CONTENT


def test_content_with_another_sum_is_refused_and_not_kept(server, tmp_path):
    with pytest.raises(ValueError, match="its sha256 is not 1234"):
        download(server.url, tmp_path / "x", "1234")
    assert list(tmp_path.iterdir()) == []


def test_content_with_the_right_sum_is_kept(server, tmp_path):
    save(tmp_path / "known", CONTENT)
    sha256 = corpora.sha256_of(tmp_path / "known")
    assert download(server.url, tmp_path / "x", sha256).exists()


def test_an_address_that_is_not_there_is_named(server, tmp_path):
    with pytest.raises(ValueError, match=r"other could not be downloaded \(Not Found\)"):
        download(server.url.replace("input.txt", "other"), tmp_path / "x")


def test_without_a_connection_the_offline_corpora_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"could not be downloaded.*prepare_data\.py stories"):
        download("http://127.0.0.1:9/input.txt", tmp_path / "raw" / "x")
    assert not (tmp_path / "raw").exists()


def test_missing_certificates_are_told_with_their_remedy(tmp_path, monkeypatch):
    def fail(url, part):
        raise urllib.error.URLError(ssl.SSLCertVerificationError("unable to get local issuer"))

    monkeypatch.setattr(corpora, "fetch_rest", fail)
    with pytest.raises(ValueError, match=r"unable to get local issuer.*Install Certificates"):
        download("https://127.0.0.1:9/input.txt", tmp_path / "x")


def test_a_full_disk_ends_a_download_as_such(server, tmp_path, monkeypatch):
    def fail(url, part):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(corpora, "fetch_rest", fail)
    with pytest.raises(OSError, match="No space left"):
        download(server.url, tmp_path / "x")
