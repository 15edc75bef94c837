from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import threading
import time
from contextlib import aclosing, suppress
from pathlib import Path

import pytest
from fakes.hub import Chunked, Corrupt, Cut, FakeHub, IgnoreRange, Rule, Say, Stall, Status
from pulling import FILE, REPOSITORY, Puller, content

from server.core.errors import (
    CannotStore,
    ChecksumMismatch,
    DiskFull,
    HubBusy,
    HubDenied,
    HubUnreachable,
    LlmspellError,
    ModelNotFound,
    PullFailed,
)
from server.core.pulling import PullActivity, PullProgress
from server.store.download import Downloaded, cannot_store
from server.store.hub_listing import Checksum, ChecksumKind
from server.store.hub_settings import HubSettings
from server.store.part_file import PartFile

MIB = 1 << 20
PLACE = f"hf.co/{REPOSITORY}/{FILE}"


async def test_a_model_is_downloaded_and_published(hub: FakeHub, puller: Puller) -> None:
    data = content(3 * MIB)
    hub.add(REPOSITORY, {FILE: data, "README.md": b"# Read me"})

    finished = await puller.pull()

    assert finished == Downloaded(puller.root / PLACE, None, (puller.root / PLACE,))
    assert finished.path.read_bytes() == data
    assert puller.published == [PLACE]
    assert puller.parts == []
    assert puller.progress[-1] == PullProgress(
        PullActivity.DONE, len(data), len(data), puller.progress[-1].bytes_per_second, puller.progress[-1].seconds_left
    )


async def test_what_is_here_is_not_downloaded_again(hub: FakeHub, puller: Puller) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)})
    first = await puller.pull()
    num_requests = len(hub.requests)

    assert await puller.pull() == first
    assert [each.path for each in hub.requests[num_requests:]] == [f"/api/models/{REPOSITORY}?blobs=true"]


async def test_what_somebody_else_put_here_is_hashed_and_believed(hub: FakeHub, puller: Puller) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    (puller.root / PLACE).parent.mkdir(parents=True)
    (puller.root / PLACE).write_bytes(data)

    await puller.pull()

    assert hub.bytes_sent == 0


async def test_what_was_changed_here_is_replaced(hub: FakeHub, puller: Puller) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    finished = await puller.pull()
    finished.path.write_bytes(content(MIB, seed=2))

    await puller.pull()

    assert finished.path.read_bytes() == data
    (notice,) = puller.notices
    assert "is replaced" in notice


async def test_links_out_of_the_folder_are_not_followed(hub: FakeHub, puller: Puller, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)})
    (tmp_path / "elsewhere").mkdir()
    place = (puller.root / PLACE).parent
    place.parent.mkdir(parents=True)
    place.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(CannotStore, match=r"leads out of .* models_dir"):
        await puller.pull()
    assert hub.bytes_sent == 0
    assert list((tmp_path / "elsewhere").iterdir()) == []


async def test_the_folder_for_models_may_be_behind_a_link(hub: FakeHub, puller: Puller, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)})
    (tmp_path / "elsewhere").mkdir()
    puller.root.symlink_to(tmp_path / "elsewhere")

    await puller.pull()

    assert (tmp_path / "elsewhere" / PLACE).is_file()


async def test_a_folder_of_the_files_name_is_noticed_before_the_download(hub: FakeHub, puller: Puller) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)})
    (puller.root / PLACE).mkdir(parents=True)

    with pytest.raises(CannotStore, match="is a folder"):
        await puller.pull()
    assert hub.bytes_sent == 0


async def test_shards_and_projector_come_in_parallel(hub: FakeHub, puller: Puller) -> None:
    shards = {f"Q4_K_M/big-Q4_K_M-0000{i}-of-00003.gguf": content(MIB, i) for i in (1, 2, 3)}
    hub.add(REPOSITORY, {**shards, "mmproj-F16.gguf": content(1000, 4), "big-Q8_0.gguf": content(MIB, 5)})
    hub.bytes_per_second = 4 * MIB

    finished = await puller.pull()

    assert hub.most_at_once >= 3
    assert [path.name for path in finished.paths] == [*(Path(name).name for name in shards), "mmproj-F16.gguf"]
    assert finished.path.name.endswith("00001-of-00003.gguf")
    assert finished.projector == puller.root / f"hf.co/{REPOSITORY}/mmproj-F16.gguf"
    assert all((puller.root / f"hf.co/{REPOSITORY}" / name).read_bytes() == data for name, data in shards.items())


async def test_the_file_to_load_by_appears_last(hub: FakeHub, puller: Puller) -> None:
    first, second = "m-Q4_K_M-00001-of-00002.gguf", "m-Q4_K_M-00002-of-00002.gguf"
    hub.add(REPOSITORY, {first: content(100_000, 1), second: content(100_000, 2)})
    hub.rules.append(Rule(second, Stall(after=50_000), times=1, at_hub=False))

    async with aclosing(puller.downloads.pull(puller.plan())) as events:
        async for event in events:
            if isinstance(event, PullProgress) and event.done_bytes == 150_000:
                break
    assert puller.published == []

    await puller.pull()
    assert puller.published == [f"hf.co/{REPOSITORY}/{first}", f"hf.co/{REPOSITORY}/{second}"]
    appeared = [(puller.root / "hf.co" / REPOSITORY / name).stat().st_ctime_ns for name in (second, first)]
    assert appeared == sorted(appeared), "a file's state changes when it gets its name"


async def test_shards_with_the_same_content_do_not_wait_for_each_other(hub: FakeHub, puller: Puller) -> None:
    names = [f"m-Q4_K_M-0000{i}-of-00002.gguf" for i in (1, 2)]
    hub.add(REPOSITORY, {name: content(1000) for name in names})

    finished = await asyncio.wait_for(puller.pull(), 10)

    assert [path.name for path in finished.paths] == names


@pytest.mark.parametrize("after", [0, 1, 70_000, MIB - 1])
async def test_a_broken_connection_is_continued(hub: FakeHub, puller: Puller, after: int) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.rules.append(Rule(FILE, Cut(after), times=1, at_hub=False))

    finished = await puller.pull()

    assert finished.path.read_bytes() == data
    assert hub.bytes_sent == len(data), "nothing comes twice"
    ranges = [each.headers.get("range") for each in hub.asked(FILE, at_hub=False)]
    assert ranges == [None, f"bytes={after}-" if after else None]
    assert "going on in" in puller.notices[0]


async def test_a_connection_that_keeps_breaking_is_given_up_and_what_came_is_kept(hub: FakeHub, puller: Puller) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)})
    hub.rules += [Rule(FILE, Cut(0), at_hub=False), Rule(FILE, Cut(1000), times=1, at_hub=False)]

    with pytest.raises(HubUnreachable, match="same command goes on"):
        await puller.pull()

    assert puller.part_bytes == 1000
    hub.rules.clear()
    await puller.pull()
    assert hub.asked(FILE, at_hub=False)[-1].headers["range"] == "bytes=1000-"


async def test_progress_between_failures_starts_the_count_anew(hub: FakeHub, puller: Puller) -> None:
    data = content(100_000)
    hub.add(REPOSITORY, {FILE: data})
    hub.rules.append(Rule(FILE, Cut(10_000), times=9, at_hub=False))

    assert (await puller.pull()).path.read_bytes() == data


async def test_silence_is_a_broken_connection(hub: FakeHub, tmp_path: Path) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.rules.append(Rule(FILE, Stall(after=100_000), times=1, at_hub=False))

    with Puller(HubSettings(hub.url), tmp_path / "models", silence=0.6) as puller:
        assert (await puller.pull()).path.read_bytes() == data


async def test_who_goes_away_leaves_something_that_resumes(hub: FakeHub, puller: Puller) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.bytes_per_second = MIB
    pulling = asyncio.create_task(puller.pull())
    await hub_has_sent(hub, 200_000)

    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling

    kept = puller.part_bytes
    assert 0 < kept < len(data)
    assert puller.published == []
    hub.bytes_per_second = 0
    await puller.pull()
    assert (puller.root / PLACE).read_bytes() == data
    assert hub.asked(FILE, at_hub=False)[-1].headers["range"] == f"bytes={kept}-"
    assert puller.parts == []


async def test_a_damaged_part_is_begun_again(hub: FakeHub, puller: Puller) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    _leave_part(puller, hub, content(500_000, seed=9))

    assert (await puller.pull()).path.read_bytes() == data
    assert any("damaged; starting again" in each for each in puller.notices)


async def test_a_part_that_is_whole_is_only_hashed(hub: FakeHub, puller: Puller) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    _leave_part(puller, hub, data)

    assert (await puller.pull()).path.read_bytes() == data
    assert hub.asked(FILE) == []


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"etag": 5}', b"[" * 99999, b"\xff"])
async def test_notes_that_are_broken_say_nothing(hub: FakeHub, puller: Puller, note: bytes) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    _leave_part(puller, hub, data[:1000])
    private = puller.root / ".llmspell"
    digest = hub.digest(data)
    (private / "incomplete" / f"{digest}.json").write_bytes(note)
    (private / "incomplete" / "other.json").write_bytes(note)
    (private / "verified").mkdir()
    (private / "verified" / f"{digest}.json").write_bytes(note)

    assert (await puller.pull()).path.read_bytes() == data
    assert (await puller.pull()).path.read_bytes() == data
    assert hub.bytes_sent == len(data) - 1000


async def test_a_part_that_is_too_long_is_begun_again(hub: FakeHub, puller: Puller) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    _leave_part(puller, hub, data + b"more")

    assert (await puller.pull()).path.read_bytes() == data


async def test_what_nobody_continues_for_a_month_is_deleted(hub: FakeHub, puller: Puller) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    _leave_part(puller, hub, data[:1000])
    mine = hub.digest(data)
    folder = puller.root / ".llmspell" / "incomplete"
    for name in ("old", "recent", "held", "nameless"):
        (folder / f"{name}.part").write_bytes(b"part")
        (folder / f"{name}.json").write_text(json.dumps({"path": f"{name}.gguf"}))
        (folder / f"{name}.lock").touch()
    (folder / "nameless.json").write_text("{")
    (folder / "oldx3k2").write_text("a note that was being written")
    (folder / "only.lock").touch()
    for path in folder.iterdir():
        _make_older(path, days=31)
    _make_older(folder / "recent.part", days=29)

    with PartFile(puller.root, Checksum(ChecksumKind.SHA256, "held")).lock(_nobody_else):
        finished = await puller.pull()

    left = {path.name for path in puller.parts}
    assert left == {"recent.part", "recent.json", "recent.lock", "held.part", "held.json"}
    assert sorted(puller.notices) == [
        f"Deleted what had come of {name}: nobody has continued that download for a month."
        for name in ("nameless", "old.gguf")
    ]
    assert finished.path.read_bytes() == data
    assert hub.bytes_sent == len(data) - 1000, f"{mine} is continued, however old it is"


async def test_a_wrong_checksum_deletes_what_came_and_says_so(hub: FakeHub, puller: Puller) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)})
    hub.rules.append(Rule(FILE, Corrupt(at=1000), at_hub=False))

    with pytest.raises(ChecksumMismatch, match="is deleted; pull again"):
        await puller.pull()

    assert puller.parts == []
    assert puller.published == []
    assert len(hub.asked(FILE, at_hub=False)) == 1, "what came in one piece is not asked for again"


async def test_a_new_version_replaces_the_part_of_the_old_one(hub: FakeHub, puller: Puller) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)})
    hub.rules += [Rule(FILE, Cut(0), at_hub=False), Rule(FILE, Cut(100_000), times=1, at_hub=False)]
    with pytest.raises(HubUnreachable):
        await puller.pull()
    assert puller.part_bytes == 100_000
    hub.rules.clear()
    new = content(MIB + 1000, seed=2)
    hub.add(REPOSITORY, {FILE: new})

    assert (await puller.pull()).path.read_bytes() == new
    assert hub.asked(FILE, at_hub=False)[-1].headers.get("range") is None
    assert puller.parts == []


async def test_a_file_that_is_replaced_after_the_listing_is_noticed_before_the_first_byte(
    hub: FakeHub, puller: Puller
) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)})
    plan = puller.plan()
    hub.add(REPOSITORY, {FILE: content(MIB, seed=2)})

    with pytest.raises(PullFailed, match="replaced on the hub meanwhile"):
        await puller.pull(plan)
    assert hub.asked(FILE, at_hub=False) == []


async def test_a_file_that_grew_is_noticed_where_the_hub_does_not_name_its_content(
    hub: FakeHub, puller: Puller
) -> None:
    hub.rules.append(Rule(FILE, Say({"x-linked-etag": None}), at_hub=True))
    hub.add(REPOSITORY, {FILE: content(MIB)})
    plan = puller.plan()
    hub.add(REPOSITORY, {FILE: content(MIB) + b"grown"})

    with pytest.raises(PullFailed, match=f"has {MIB + 5} bytes on the hub now"):
        await puller.pull(plan)


async def test_a_file_that_changed_between_two_attempts_is_begun_again(hub: FakeHub, puller: Puller) -> None:
    old, new = content(MIB), content(MIB, seed=2)
    hub.rules.append(Rule(FILE, Say({"x-linked-etag": None}), at_hub=True))
    hub.add(REPOSITORY, {FILE: old})
    plan = puller.plan()
    hub.rules += [Rule(FILE, Cut(0), at_hub=False), Rule(FILE, Cut(100_000), times=1, at_hub=False)]
    with pytest.raises(HubUnreachable):
        await puller.pull(plan)
    hub.rules[1:] = []
    num_requests = len(hub.asked(FILE, at_hub=False))
    hub.add(REPOSITORY, {FILE: new})

    with pytest.raises(ChecksumMismatch):
        await puller.pull(plan)

    assert any("it has changed on the hub" in each for each in puller.notices)
    second = hub.asked(FILE, at_hub=False)[num_requests].headers
    assert (second["range"], second["if-range"][0]) == ("bytes=100000-", '"')
    assert (await puller.pull()).path.read_bytes() == new


async def test_another_name_for_the_same_content_does_not_begin_it_again(hub: FakeHub, puller: Puller) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.rules += [
        Rule(FILE, Say({"etag": '"of-another-storage"'}), times=1, at_hub=False),
        Rule(FILE, Cut(100_000), times=1, at_hub=False),
    ]

    assert (await puller.pull()).path.read_bytes() == data
    assert "if-range" not in hub.asked(FILE, at_hub=False)[1].headers
    assert hub.bytes_sent == len(data)


async def test_a_hub_that_ignores_ranges_sends_everything_again(hub: FakeHub, puller: Puller) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.rules += [Rule(FILE, IgnoreRange(), at_hub=False), Rule(FILE, Cut(100_000), times=1, at_hub=False)]

    assert (await puller.pull()).path.read_bytes() == data
    assert any("cannot continue downloads" in each for each in puller.notices)


async def test_a_hub_that_ignores_ranges_and_breaks_off_is_not_asked_for_ever(hub: FakeHub, puller: Puller) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)})
    hub.rules += [Rule(FILE, IgnoreRange(), at_hub=False), Rule(FILE, Cut(100_000), at_hub=False)]

    with pytest.raises(PullFailed, match="does not continue where it did"):
        await asyncio.wait_for(puller.pull(), 20)


@pytest.mark.parametrize(
    "said", ["bytes 5-1048575/1048576", "bytes */1048576", "nonsense", "bytes 99999999999999999999-1/2"]
)
async def test_another_range_than_was_asked_for_is_not_written(hub: FakeHub, puller: Puller, said: str) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.rules += [
        Rule(FILE, Say({"content-range": said}), times=1, at_hub=False, ranged=True),
        Rule(FILE, Cut(100_000), times=1, at_hub=False),
    ]

    assert (await puller.pull()).path.read_bytes() == data


async def test_a_range_that_there_is_not_begins_again(hub: FakeHub, puller: Puller) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.rules += [
        Rule(FILE, Status(416), times=1, at_hub=False, ranged=True),
        Rule(FILE, Cut(100_000), times=1, at_hub=False),
    ]

    assert (await puller.pull()).path.read_bytes() == data


async def test_a_body_in_chunks_is_read(hub: FakeHub, puller: Puller) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.rules.append(Rule(FILE, Chunked(), at_hub=False))

    assert (await puller.pull()).path.read_bytes() == data


async def test_a_small_file_is_verified_as_git_does(hub: FakeHub, puller: Puller) -> None:
    hub.add(REPOSITORY, {FILE: b"small"})

    assert (await puller.pull()).path.read_bytes() == b"small"

    hub.add(REPOSITORY, {FILE: b"SMALL"})
    hub.rules.append(Rule(FILE, Corrupt(), at_hub=False))
    with pytest.raises(ChecksumMismatch, match="git-sha1"):
        await puller.pull()


@pytest.mark.parametrize("status", [500, 502, 503, 504, 408])
async def test_a_failing_hub_is_asked_again(hub: FakeHub, puller: Puller, status: int) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.rules.append(Rule("/resolve/", Status(status), times=2))

    assert (await puller.pull()).path.read_bytes() == data


async def test_storage_that_refuses_is_asked_for_through_the_hub_again(hub: FakeHub, puller: Puller) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.rules.append(Rule(FILE, Status(403, body=b"<Error>Request has expired</Error>"), times=1, at_hub=False))

    assert (await puller.pull()).path.read_bytes() == data
    assert len(hub.asked("/resolve/", at_hub=True)) == 2


async def test_a_short_pause_is_kept_and_a_long_one_is_told(hub: FakeHub, puller: Puller) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)})
    hub.rules.append(Rule("/resolve/", Status(429, headers={"retry-after": "0.2"}), times=1))
    started = time.monotonic()

    await puller.pull()

    assert time.monotonic() - started > 0.2
    hub.add(REPOSITORY, {FILE: content(MIB, seed=2)})
    hub.rules.append(Rule("/resolve/", Status(429, headers={"retry-after": "3600"}), times=1))
    with pytest.raises(HubBusy) as raised:
        await puller.pull()
    assert raised.value.retry_after == 3600


@pytest.mark.parametrize(
    ("status", "token", "error", "message"),
    [
        (Status(401, "RepoNotFound"), "", HubDenied, "or it is private"),
        (Status(401, "", "Invalid credentials"), "old", HubDenied, "does not accept the token"),
        (Status(403, "GatedRepo", "not in the authorized list"), "mine", HubDenied, "has no access yet"),
        (Status(404, "EntryNotFound"), "", ModelNotFound, "no longer has this file"),
        (Status(404, "RepoNotFound"), "", ModelNotFound, "There is no repository"),
        (Status(429, headers={"retry-after": "200"}), "", HubBusy, "in 200 s; what has been downloaded is kept"),
        (Status(500), "", HubUnreachable, "status 500 .* what has been downloaded is kept"),
        (Status(503, "", "Maintenance"), "", HubUnreachable, r"status 503 \(Maintenance\)"),
        (Status(418), "", PullFailed, "status 418"),
    ],
)
async def test_refusals_in_mid_file_say_what_to_do_and_keep_what_came(
    hub: FakeHub, tmp_path: Path, status: Status, token: str, error: type[LlmspellError], message: str
) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    with Puller(HubSettings(hub.url, token), tmp_path / "models") as puller:
        plan = puller.plan()
        hub.rules += [Rule(FILE, status, at_hub=True, ranged=True), Rule(FILE, Cut(100_000), times=1, at_hub=False)]

        with pytest.raises(error, match=message):
            await puller.pull(plan)

        assert puller.part_bytes == 100_000
        hub.rules.clear()
        assert (await puller.pull(plan)).path.read_bytes() == data
        assert hub.bytes_sent == len(data)


async def test_a_gated_file_says_what_to_do(hub: FakeHub, puller: Puller) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)}, gated="auto", token="secret")
    plan = puller.plan()

    with pytest.raises(HubDenied, match=r"accept its conditions at .*/owner/repo-GGUF, create a token .* HF_TOKEN"):
        await puller.pull(plan)


async def test_the_token_goes_to_the_hub_and_not_to_its_storage(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)}, gated="manual", token="secret")

    with Puller(HubSettings(hub.url, "secret"), tmp_path / "models") as puller:
        await puller.pull()

    assert {each.headers.get("authorization") for each in hub.asked("", at_hub=True)} == {"Bearer secret"}
    assert not any("authorization" in each.headers for each in hub.asked("", at_hub=False))


async def test_a_full_disk_is_noticed_first(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {FILE: content(2 * MIB)})

    with (
        Puller(HubSettings(hub.url), tmp_path / "models", free_bytes=lambda _: MIB) as puller,
        pytest.raises(DiskFull, match=r"2\.1 MB are to come, and 1\.0 MB are free"),
    ):
        await puller.pull()
    assert hub.asked("/resolve/") == []


@pytest.mark.parametrize(
    ("number", "expected", "match"),
    [
        (errno.ENOSPC, DiskFull, "full. Delete something and pull again"),
        (errno.EDQUOT, DiskFull, "full"),
        (errno.EFBIG, CannotStore, "cannot hold files this large"),
        (errno.EROFS, CannotStore, r"cannot be written to \(Read-only"),
        (errno.EIO, CannotStore, "Nothing can be stored"),
    ],
)
def test_what_the_system_refuses_is_told_in_words(number: int, expected: type[Exception], match: str) -> None:
    told = cannot_store(OSError(number, os.strerror(number)), Path("/models"))

    assert type(told) is expected
    assert re.search(match, str(told))


async def test_a_folder_that_cannot_be_written_to_is_named(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)})
    if os.geteuid():
        root = tmp_path / "read-only"
        root.mkdir(mode=0o500)
    else:  # the superuser may write wherever the system itself does not refuse
        root = Path("/sys/kernel/models")
        if not root.parent.is_dir():
            pytest.skip("there is no folder that refuses the superuser")

    with Puller(HubSettings(hub.url), root) as puller, pytest.raises(CannotStore, match=f"{root} cannot be written to"):
        await puller.pull()


async def test_a_file_in_place_of_the_folder_is_named(hub: FakeHub, tmp_path: Path) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)})
    (tmp_path / "file").touch()

    with (
        Puller(HubSettings(hub.url), tmp_path / "file" / "models") as puller,
        pytest.raises(CannotStore, match=str(tmp_path / "file")),
    ):
        await puller.pull()


async def test_two_who_want_the_same_share_one_download(hub: FakeHub, puller: Puller) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.bytes_per_second = 4 * MIB
    plan = puller.plan()

    async def watch() -> list[PullProgress | Downloaded]:
        return [event async for event in puller.downloads.pull(plan) if isinstance(event, PullProgress | Downloaded)]

    first, second = await asyncio.gather(watch(), watch())

    assert hub.bytes_sent == len(data)
    assert len(first) > 3
    assert len(second) > 3
    assert first[-1] == second[-1]


async def test_the_download_goes_on_while_anybody_waits(hub: FakeHub, puller: Puller) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.bytes_per_second = 4 * MIB
    plan = puller.plan()
    leaving = asyncio.create_task(puller.pull(plan))
    staying = asyncio.create_task(puller.pull(plan))
    await hub_has_sent(hub, 100_000)

    leaving.cancel()
    with suppress(asyncio.CancelledError):
        await leaving

    assert (await staying).path.read_bytes() == data
    assert hub.bytes_sent == len(data)


async def test_two_downloads_of_one_folder_fetch_a_file_once(hub: FakeHub, tmp_path: Path) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    hub.bytes_per_second = 4 * MIB
    root = tmp_path / "models"

    with Puller(HubSettings(hub.url), root) as one, Puller(HubSettings(hub.url), root) as other:
        await asyncio.gather(one.pull(), other.pull())

    assert hub.bytes_sent == len(data)
    activities = [{each.activity for each in puller.progress} for puller in (one, other)]
    assert sorted(PullActivity.WAITING in each for each in activities) == [False, True]
    waiting = one if PullActivity.WAITING in activities[0] else other
    assert len({each.done_bytes for each in waiting.progress}) > 1, "who waits sees it grow"


async def test_quantizations_share_their_projector(hub: FakeHub, puller: Puller) -> None:
    projector = content(MIB, 3)
    hub.add(REPOSITORY, {"a-Q4_K_M.gguf": content(1000, 1), "a-Q8_0.gguf": content(1000, 2), "mmproj.gguf": projector})
    hub.bytes_per_second = 8 * MIB

    await asyncio.gather(
        *(_drain(puller, quantization) for quantization in ("Q4_K_M", "Q8_0")),
    )

    assert hub.bytes_sent == len(projector) + 2000


async def test_no_thread_is_left(hub: FakeHub, puller: Puller) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)})
    hub.rules.append(Rule(FILE, Cut(1000), times=2, at_hub=False))

    before = set(threading.enumerate())

    await puller.pull()

    # the hub has a thread for each connection, which may be used again
    for thread in set(threading.enumerate()) - before:
        if "process_request_thread" not in thread.name:
            thread.join(5)
            assert not thread.is_alive()


async def test_speed_and_time_left_are_told(hub: FakeHub, puller: Puller) -> None:
    hub.add(REPOSITORY, {FILE: content(MIB)})
    hub.bytes_per_second = 2 * MIB

    await puller.pull()

    moving = [
        each for each in puller.progress if each.activity is PullActivity.DOWNLOADING and each.done_bytes > 300_000
    ]
    assert moving
    assert all(each.bytes_per_second > 0 and each.seconds_left is not None for each in moving)
    assert [each.done_bytes for each in puller.progress] == sorted(each.done_bytes for each in puller.progress)


async def test_speed_counts_from_the_start(hub: FakeHub, tmp_path: Path) -> None:
    data = content(MIB)
    hub.add(REPOSITORY, {FILE: data})
    times = iter([0.0, 2.0])

    with Puller(HubSettings(hub.url), tmp_path / "models", clock=lambda: next(times), look=60.0) as puller:
        await puller.pull()

    assert [(each.done_bytes, each.bytes_per_second) for each in puller.progress] == [(MIB, MIB / 2)]


async def hub_has_sent(hub: FakeHub, num_bytes: int) -> None:
    while hub.bytes_sent < num_bytes:  # noqa: ASYNC110 - it sends in other threads
        await asyncio.sleep(0.01)


async def _drain(puller: Puller, quantization: str) -> None:
    async for _ in puller.downloads.pull(puller.plan(quantization)):
        pass


def _make_older(path: Path, days: int) -> None:
    when = time.time() - days * 24 * 3600
    os.utime(path, (when, when))


def _nobody_else() -> None:
    raise AssertionError("somebody holds the lock")


def _leave_part(puller: Puller, hub: FakeHub, data: bytes) -> None:
    """Leave something in the place of a download that did not finish."""
    digest = hub.digest(hub.repositories[REPOSITORY].files[FILE])
    folder = puller.root / ".llmspell" / "incomplete"
    folder.mkdir(parents=True)
    (folder / f"{digest}.part").write_bytes(data)
