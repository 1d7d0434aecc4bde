"""WebDataset shards: read by place, and hostile or damaged ones."""

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from webdataset.tariterators import group_by_keys, tar_file_expander

from indexer.errors import BuildError, ImageError, Reason
from indexer.samples import Sample, Samples, load_samples
from tests.pictures import POLICY, encode, quarters

PNG = encode(quarters(), "PNG")
BLOCK = 512


def tar(*members: tuple[str | tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    """Return a tar file of these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for name, data in members:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            if isinstance(name, str):
                member.size = len(data)
            file.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    """Return a member without content."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member


def base_256(number: int) -> bytes:
    """Write a number as GNU tar writes those that its 12 octal digits cannot hold: negative ones too."""
    return number.to_bytes(12, "big", signed=True) if number < 0 else b"\x80" + number.to_bytes(11, "big")


def load(folder: Path, data: bytes) -> Samples:
    """Write a shard and load it."""
    (folder / "s.tar").write_bytes(data)
    return load_samples(folder / "s.tar", None, POLICY)


def refusal(folder: Path, data: bytes) -> str:
    """Have a shard refused, and return the sentence."""
    with pytest.raises(BuildError) as error:
        load(folder, data)
    return str(error.value)


def reason(samples: Samples, i: int) -> Reason:
    """Have a picture refused, and return the reason."""
    with pytest.raises(ImageError) as error:
        samples.read(i)
    return error.value.reason


def write_shard(path: Path, first: int, count: int) -> dict[str, dict[str, Any]]:
    """Write a shard with webdataset's own writer, and return what was written by key."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = {}
    with webdataset.TarWriter(str(path)) as writer:
        for i in range(first, first + count):
            picture = encode(np.full((4, 4, 3), i, np.uint8), "PNG")
            said = {"txt": f"number {i}", "cls": i % 3, "json": {"i": i, "split": "test"}}
            written[f"{i:05}"] = {"png": picture, **said}
            writer.write({"__key__": f"{i:05}", "png": picture, **said})
    return written


def test_a_shard_of_webdataset_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = write_shard(tmp_path / "s.tar", 0, 7)
    samples = load_samples(tmp_path / "s.tar", None, POLICY)
    assert list(samples) == [
        Sample(f"s.tar/{key}", str(each["cls"]), (each["txt"],), each["json"]) for key, each in written.items()
    ]
    assert [samples.read(i) for i in range(7)] == [each["png"] for each in written.values()]
    assert samples.image(5).getpixel((0, 0)) == (5, 5, 5)


def test_samples_are_grouped_as_webdataset_groups_them(tmp_path: Path) -> None:
    data = tar(
        ("a.jpg", b"1"),
        ("a.txt", b"an a"),
        ("dir/b.c.png", b"2"),
        ("dir/b.PNG", b"3"),
        ("dir.d/e.jpeg", b"4"),
        ("x.webp", b"5"),
    )
    samples = load(tmp_path, data)
    with (tmp_path / "s.tar").open("rb") as file:
        members = tar_file_expander([{"url": "s.tar", "stream": file}])
        theirs = {each["__key__"]: each for each in group_by_keys(members)}
    assert [sample.name for sample in samples] == [f"s.tar/{key}" for key in theirs]
    endings = {"a": "jpg", "dir/b": "png", "dir.d/e": "jpeg", "x": "webp"}
    assert [samples.read(i) for i in range(4)] == [theirs[key][ending] for key, ending in endings.items()]


def test_labels_captions_and_metadata_come_from_txt_cls_and_json(tmp_path: Path) -> None:
    row = {"label": "json", "caption": "two", "captions": ["three", "one"], "year": 1940, "box": [1, 2]}
    samples = load(
        tmp_path,
        tar(
            ("a.json", json.dumps(row).encode()),
            ("a.jpg", PNG),
            ("a.txt", "one\n\n vier ü\n".encode()),
            ("b.jpg", PNG),
            ("b.json", json.dumps(row).encode()),
            ("b.cls", b"7\n"),
            ("c.jpg", PNG),
        ),
    )
    metadata = {"year": 1940, "box": [1, 2]}
    assert list(samples) == [
        Sample("s.tar/a", "json", ("one", "vier ü", "two", "three"), metadata),
        Sample("s.tar/b", "7", ("two", "three", "one"), metadata),
        Sample("s.tar/c", None, (), {}),
    ]


def test_of_several_pictures_of_a_key_the_first_counts(tmp_path: Path) -> None:
    assert load(tmp_path, tar(("a.png", b"1"), ("a.jpg", b"2"))).read(0) == b"1"


def test_folders_and_names_without_an_ending_or_a_key_are_passed_over(tmp_path: Path) -> None:
    folder = special("dir.png", tarfile.DIRTYPE)
    data = tar((folder, b""), ("README", b"x"), (".hidden.jpg", b"x"), ("dir/._a.jpg", b"x"), ("a.jpg", PNG))
    assert [sample.name for sample in load(tmp_path, data)] == ["s.tar/a"]


def test_long_and_foreign_names_are_read_in_every_tar_format(tmp_path: Path) -> None:
    name = "d" * 90 + "/" + "ü" * 80
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        samples = load(tmp_path, tar((f"{name}.jpg", PNG), (f"{name}.txt", b"long"), form=form))
        assert list(samples) == [Sample(f"s.tar/{name}", None, ("long",), {})]
        assert samples.read(0) == PNG


# Several shards


@pytest.mark.parametrize("data", ["", "{000..002}.tar", "{00..00}{0..2}.tar"])
def test_shards_are_a_folder_of_them_or_a_pattern(tmp_path: Path, data: str) -> None:
    for number in range(3):
        write_shard(tmp_path / f"{number:03}.tar", 10 * number, 2)
    (tmp_path / ".index").touch()
    samples = load_samples(tmp_path / data, None, POLICY)
    assert [sample.name for sample in samples] == [
        f"{number:03}.tar/{10 * number + i:05}" for number in range(3) for i in range(2)
    ]
    assert [samples.image(i).getpixel((0, 0)) for i in range(6)] == [(i, i, i) for i in (0, 1, 10, 11, 20, 21)]


def test_a_pattern_may_run_over_folders_whose_shards_have_the_same_name(tmp_path: Path) -> None:
    for number in (9, 10):
        write_shard(tmp_path / f"part{number}" / "0.tar", number, 1)
    samples = load_samples(tmp_path / "part{9..10}" / "0.tar", None, POLICY)
    assert [sample.name for sample in samples] == ["part9/0.tar/00009", "part10/0.tar/00010"]


@pytest.mark.parametrize("name", ["{0..999999999999}.tar", "3.tar"])
def test_a_missing_shard_is_named(tmp_path: Path, name: str) -> None:
    for number in (0, 1):
        write_shard(tmp_path / f"{number}.tar", number, 1)
    missing = 2 if ".." in name else 3
    with pytest.raises(BuildError, match=rf"^The shard .*/{missing}\.tar does not exist\.$"):
        load_samples(tmp_path / name, None, POLICY)


def test_a_table_describes_the_samples_of_shards_by_name(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", 0, 2)
    (tmp_path / "mined.jsonl").write_text('{"path": "0.tar/00001", "captions": ["x", "y"], "scores": [0.5, 0.4]}\n')
    samples = load_samples(tmp_path / "0.tar", str(tmp_path / "mined.jsonl"), POLICY)
    assert list(samples) == [
        Sample("0.tar/00000", "0", ("number 0",), {"i": 0, "split": "test"}),
        Sample("0.tar/00001", "1", ("x", "y"), {"i": 1, "split": "test", "scores": [0.5, 0.4]}),
    ]


def test_labels_by_file_names_are_refused_for_shards(tmp_path: Path) -> None:
    write_shard(tmp_path / "0.tar", 0, 2)
    with pytest.raises(BuildError, match="'parent' are names of files in a folder"):
        load_samples(tmp_path / "0.tar", "parent", POLICY)


def test_threads_read_as_one_by_one_in_any_order(tmp_path: Path) -> None:
    written = write_shard(tmp_path / "s.tar", 0, 200)
    samples = load_samples(tmp_path / "s.tar", None, POLICY)
    order = np.random.default_rng(0).permutation(200).tolist()
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(samples.read, order))
    assert found == [written[f"{i:05}"]["png"] for i in order]


def test_nothing_is_written_to_disk(tmp_path: Path) -> None:
    samples = load(tmp_path, tar(("a.jpg", PNG), ("../b.jpg", PNG), ("/tmp/c.jpg", PNG)))  # noqa: S108 - a hostile name
    samples.image(0)
    assert [path.name for path in tmp_path.rglob("*")] == ["s.tar"]


# Hostile members


@pytest.mark.parametrize(
    ("member", "why"),
    [
        ((special("x.jpg", tarfile.SYMTYPE, "/etc/passwd"), b""), Reason.OUTSIDE_SOURCE),
        ((special("x.jpg", tarfile.SYMTYPE, "good.jpg"), b""), Reason.OUTSIDE_SOURCE),
        ((special("x.jpg", tarfile.LNKTYPE, "good.jpg"), b""), Reason.OUTSIDE_SOURCE),
        ((special("x.jpg", tarfile.FIFOTYPE), b""), Reason.UNREADABLE),
        ((special("x.jpg", tarfile.CHRTYPE), b""), Reason.UNREADABLE),
        (("/etc/x.jpg", PNG), Reason.BAD_NAME),
        (("../../x.jpg", PNG), Reason.BAD_NAME),
        (("a/../x.jpg", PNG), Reason.BAD_NAME),
        (("x\udcff.jpg", PNG), Reason.BAD_NAME),
        (("x.jpg", bytes(POLICY.max_bytes + 1)), Reason.TOO_MANY_BYTES),
        (("x.mp4", PNG), Reason.NOT_AN_IMAGE),
        (("x.txt", b"a caption of nothing"), Reason.NOT_AN_IMAGE),
    ],
)
def test_a_hostile_member_costs_itself_only(
    tmp_path: Path, member: tuple[str | tarfile.TarInfo, bytes], why: Reason
) -> None:
    samples = load(tmp_path, tar(("good.jpg", PNG), ("good.txt", b"good"), member, ("last.jpg", PNG)))
    assert [samples[0], samples[2]] == [
        Sample("s.tar/good", None, ("good",), {}),
        Sample("s.tar/last", None, (), {}),
    ]
    assert (samples.read(0), samples.read(2)) == (PNG, PNG)
    assert reason(samples, 1) is why


@pytest.mark.parametrize(
    ("ending", "data", "why"),
    [
        ("json", b"{", Reason.UNREADABLE),
        ("json", b"[1]", Reason.UNREADABLE),
        ("json", b'{"x": NaN}', Reason.UNREADABLE),
        ("json", b"[" * 100_000, Reason.UNREADABLE),
        ("json", b'{"captions": 7}', Reason.UNREADABLE),
        ("txt", b"\xff\xfe", Reason.UNREADABLE),
        ("cls", b"\xff", Reason.UNREADABLE),
        ("txt", b"x" * (2**20 + 1), Reason.TOO_MANY_BYTES),
    ],
)
def test_what_cannot_be_understood_costs_its_own_picture_only(
    tmp_path: Path, ending: str, data: bytes, why: Reason
) -> None:
    samples = load(tmp_path, tar(("x.jpg", PNG), (f"x.{ending}", data), ("y.jpg", PNG)))
    assert reason(samples, 0) is why
    assert samples.read(1) == PNG


def test_a_link_in_place_of_a_caption_costs_its_own_picture_only(tmp_path: Path) -> None:
    link = special("x.txt", tarfile.SYMTYPE, "/etc/passwd")
    samples = load(tmp_path, tar(("x.jpg", PNG), (link, b""), ("y.jpg", PNG)))
    assert reason(samples, 0) is Reason.OUTSIDE_SOURCE
    assert samples.read(1) == PNG


def test_a_sparse_member_costs_itself_only(tmp_path: Path) -> None:
    # A GNU sparse file that claims to be 1 TB large, of which 512 bytes are stored.
    member = tarfile.TarInfo("x.jpg")
    member.size = BLOCK
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = b"S"
    header[386:398], header[398:410] = b"00000000000\0", b"00000001000\0"
    header[483:495] = base_256(2**40)
    data = tar(("a.jpg", PNG))
    whole = checked(header) + bytes(BLOCK) + data
    samples = load(tmp_path, whole)
    assert reason(samples, 0) is Reason.UNREADABLE
    assert samples.read(1) == PNG


def test_an_empty_picture_costs_itself(tmp_path: Path) -> None:
    samples = load(tmp_path, tar(("x.jpg", b""), ("y.jpg", PNG)))
    with pytest.raises(ImageError, match="empty"):
        samples.image(0)
    assert samples.image(1).size == (30, 20)


def test_a_shard_that_is_cut_or_deleted_after_it_was_opened_costs_its_pictures(tmp_path: Path) -> None:
    samples = load(tmp_path, tar(("x.jpg", PNG), ("y.jpg", PNG)))
    whole = (tmp_path / "s.tar").read_bytes()
    (tmp_path / "s.tar").write_bytes(whole[: BLOCK + 10])
    assert [reason(samples, i) for i in (0, 1)] == [Reason.CHANGED, Reason.CHANGED]
    (tmp_path / "s.tar").unlink()
    assert reason(samples, 0) is Reason.UNREADABLE


# Damaged shards


def checked(header: bytes | bytearray) -> bytes:
    """Return a header of a member with the checksum that its bytes should have."""
    total = sum(header[:148]) + 8 * ord(" ") + sum(header[156:BLOCK])
    return bytes(header[:148]) + f"{total:06o}\0 ".encode() + bytes(header[156:])


@pytest.mark.parametrize("name", ["s.tar", "s.tar.gz", "s.tgz"])
def test_a_compressed_shard_is_refused_with_what_to_do(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(gzip.compress(tar(("a.jpg", PNG))))
    with pytest.raises(BuildError, match=rf"{name} is compressed\. .*decompress it \(gunzip\)\.$"):
        load_samples(tmp_path / name, None, POLICY)


def test_a_member_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    assert refusal(tmp_path, tar(("a.jpg", PNG), ("b.jpg", PNG), ("a.jpg", PNG))).endswith("s.tar holds 'a.jpg' twice.")


@pytest.mark.parametrize("data", [b"", b"no tar at all", b"x" * 5_000, PNG, b"BZh9" + bytes(1000)])
def test_a_file_that_is_no_tar_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    assert "s.tar is no tar file, or is damaged or cut off: " in refusal(tmp_path, data)


@pytest.mark.parametrize("member", [b"-1", b"-512", b"-1024", b"-99999"])
@pytest.mark.parametrize("form", ["base256", "pax"])
def test_a_negative_size_is_refused_rather_than_followed_for_ever(tmp_path: Path, member: bytes, form: str) -> None:
    if form == "pax":
        info = tarfile.TarInfo("b.jpg")
        info.pax_headers = {"size": member.decode()}
        data = tar(("a.jpg", PNG), (info, b""), form=tarfile.PAX_FORMAT)
    else:
        header = bytearray(tarfile.TarInfo("b.jpg").tobuf(tarfile.GNU_FORMAT))
        header[124:136] = base_256(int(member))
        first = tar(("a.jpg", PNG))[: BLOCK + -(-len(PNG) // BLOCK) * BLOCK]
        data = first + checked(header) + bytes(2 * BLOCK)
    assert "s.tar is " in refusal(tmp_path, data)


def test_a_shard_whose_end_was_never_written_is_refused(tmp_path: Path) -> None:
    end = 2 * BLOCK + -(-len(PNG) // BLOCK) * BLOCK
    sentence = refusal(tmp_path, tar(("a.jpg", PNG), ("a.txt", b"x"))[: end + BLOCK])
    assert f"s.tar is damaged or cut off at byte {end + BLOCK:,}" in sentence


def test_a_damaged_header_in_the_middle_is_refused(tmp_path: Path) -> None:
    data = bytearray(tar(("a.jpg", PNG), ("b.jpg", PNG)))
    place = BLOCK + -(-len(PNG) // BLOCK) * BLOCK
    data[place + 3] ^= 0xFF
    assert f"s.tar is damaged or cut off at byte {place:,}" in refusal(tmp_path, bytes(data))


WHOLE = tar(("a.jpg", PNG), ("a.txt", b"an a"), ("b.jpg", PNG), ("b.json", b'{"label": "x"}'))
END = WHOLE.rindex(b'{"label": "x"}') + BLOCK


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder that many examples share."""
    return tmp_path_factory.mktemp("shards")


@settings(max_examples=150, deadline=None)
@given(cut=st.integers(0, len(WHOLE)))
def test_a_cut_shard_is_refused_wherever_it_was_cut(place: Path, cut: int) -> None:
    if cut < END + BLOCK:
        assert "s.tar is" in refusal(place, WHOLE[:cut])
    else:
        assert len(load(place, WHOLE[:cut])) == 2


def read_or_refuse(place: Path, data: bytes) -> None:
    """Load a shard and read all of it; only our own errors may come of it."""
    try:
        samples = load(place, data)
    except BuildError:
        return
    for i in range(len(samples)):
        try:
            assert len(samples.read(i)) <= POLICY.max_bytes
        except ImageError:
            continue


HEADER_FIELDS = ((0, 100), (124, 136), (156, 157), (157, 257), (257, 265), (345, 512))
"""Name, size, type, link, magic, and prefix or sparse map of a member."""


@settings(max_examples=300, deadline=None)
@given(
    header=st.sampled_from([at for at in range(0, END, BLOCK) if b"ustar" in WHOLE[at : at + BLOCK]]),
    changes=st.lists(st.tuples(st.sampled_from(HEADER_FIELDS), st.binary(max_size=20)), min_size=1, max_size=3),
    kind=st.sampled_from(b"01235678gxXLKSDMVN\0"),
)
def test_headers_made_up_by_an_enemy_are_read_or_refused(
    place: Path, header: int, changes: list[tuple[tuple[int, int], bytes]], kind: int
) -> None:
    block = bytearray(WHOLE[header : header + BLOCK])
    block[156] = kind
    for (start, end), data in changes:
        block[start : start + len(data[: end - start])] = data[: end - start]
    read_or_refuse(place, WHOLE[:header] + checked(block) + WHOLE[header + BLOCK :])


SIZES: tuple[Callable[[int], str], ...] = (str, lambda size: f"{size}.5", hex)


@settings(max_examples=100, deadline=None)
@given(size=st.integers(-(2**70), 2**70), write=st.sampled_from(SIZES), more=st.dictionaries(st.text(), st.text()))
def test_extended_headers_made_up_by_an_enemy_are_read_or_refused(
    place: Path, size: int, write: Callable[[int], str], more: dict[str, str]
) -> None:
    info = tarfile.TarInfo("b.jpg")
    info.pax_headers = {**more, "size": write(size), "GNU.sparse.size": str(size), "GNU.sparse.map": "0,1,x"}
    try:
        data = tar(("a.jpg", PNG), (info, b""), form=tarfile.PAX_FORMAT)
    except UnicodeEncodeError:
        return
    read_or_refuse(place, data)


def test_a_chain_of_extended_headers_is_refused(tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type = tarfile.XHDTYPE
    chain = checked(header.tobuf(tarfile.GNU_FORMAT)) * 5_000
    assert "s.tar is no tar file, or is damaged or cut off: " in refusal(tmp_path, chain + tar(("a.jpg", PNG)))
