"""Collections on a full disk: as much as is needed, as little as that takes, and not a block allocated for it."""

import threading
from pathlib import Path

import pytest

from repository.collect import CollectReport
from repository.errors import NoSpaceError
from repository.format.pack import PUNCHED_OFFSET
from repository.ids import pack_of
from repository.ledger import Claim
from repository.policy.collect import Safety
from repository.repo import Repository
from repository.units import KIB, MIB
from tests.support.calls import RecordingCalls
from tests.support.repositories import SetClock, open_for_writing, pack_blocks_bytes, publish, read_files
from tests.support.stores import noise

pytestmark = pytest.mark.slow


def many(seed: int, count: int = 10, length: int = 100 * KIB) -> dict[str, bytes]:
    return {f"f{number:02}": noise(seed * 1000 + number, length) for number in range(count)}


def four_deleted(repository: Repository, clock: SetClock) -> None:
    """'kept', and a, b, c, d, deleted in the order c, a, d, b; 1 MB each. Their data lie between each other's."""
    files = {"kept": many(9), "a": many(0), "b": many(1), "c": many(2), "d": many(3)}
    with repository.store.lease() as lease:
        for number in range(10):
            for one in files.values():
                repository.store.put_bytes(one[f"f{number:02}"], final=True, lease=lease)
        for name, one in files.items():
            publish(repository, one, name)
    for name in "cadb":
        repository.delete(repository.find(name))
        clock.pass_days(0.01)
    repository.store.seal_open()


def assert_freed(report: CollectReport, nbytes: int) -> None:
    """What was said came free, but for the blocks in which ext4 notes the extents of a file with many holes."""
    packs = len({cut.punch.pack for cut in report.plan.cuts})
    assert report.freed_bytes - 4096 * packs <= nbytes <= report.freed_bytes


def trashed(repository: Repository) -> set[str]:
    return {slot.name for slot in repository.trash()}


def test_only_as_many_deleted_snapshots_go_as_it_takes_the_longest_deleted_first(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        four_deleted(repository, clock)
        before = pack_blocks_bytes(path)
        report = repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=1500 * KIB)
        assert report.expired == ("c", "a")
        assert trashed(repository) == {"b", "d"}
        assert report.freed_bytes >= 1500 * KIB
        assert_freed(report, before - pack_blocks_bytes(path))
        # The largest pieces went first, and no more of them than it took: the rest is garbage for the next time.
        left = repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=1, trash=False)
        assert left.expired == ()
        assert left.freed_bytes > 0
        assert trashed(repository) == {"b", "d"}
        assert repository.undelete(repository.trash()[0]).name in "bd"
        assert read_files(repository, repository.find("kept")) == many(9)
        assert repository.check(read_data=True).findings == ()


def test_no_deleted_snapshot_goes_where_garbage_is_enough(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        four_deleted(repository, clock)
        with repository.store.lease() as lease:
            for data in many(20).values():
                repository.store.put_bytes(data, final=True, lease=lease)
        report = repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=700 * KIB)
        assert report.expired == ()
        assert report.freed_bytes >= 700 * KIB
        assert trashed(repository) == set("abcd")


def test_what_is_beyond_reach_is_freed_as_far_as_it_goes(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        four_deleted(repository, clock)
        promised = repository.reclaimable_bytes()
        report = repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=1 << 40)
        assert report.freed_bytes == promised > 4 * MIB * 0.9
        assert trashed(repository) == set()


def test_a_dry_run_says_what_it_would_take(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        four_deleted(repository, clock)
        planned = repository.collector.collect(Safety.NONE, dry_run=True, enough_bytes=1500 * KIB)
        assert planned.expired == ("c", "a")
        assert trashed(repository) == set("abcd")
        done = repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=1500 * KIB)
        assert done.freed_bytes == planned.plan.reclaimable_bytes


def test_nothing_is_condemned_but_what_goes(path: Path, clock: SetClock) -> None:
    """What stays behind as garbage is still found by a put of the same bytes, and so is not stored again."""
    with open_for_writing(path, clock) as repository:
        four_deleted(repository, clock)
        repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=200 * KIB)
        with repository.store.lease() as lease:
            found = [repository.store.put_bytes(data, final=True, lease=lease) for data in many(2).values()]
            ids = [ref.id for refs, _ in found for ref in refs if ref.id is not None]
            young = [place for place in repository.store.locate(ids) if place is not None]
            highest = max(info.index for info in repository.store.packs() if info.sealed)
            assert 0 < sum(pack_of(place.number) > highest for place in young) < len(young)


def test_an_emergency_allocates_nothing(path: Path, clock: SetClock) -> None:
    calls = RecordingCalls()
    with open_for_writing(path, clock, calls) as repository:
        four_deleted(repository, clock)
        publish(repository, many(30), "open")  # garbage in a pack that is open yet
        repository.delete(repository.find("open"))
        repository.store.allow_caches(False)
        sizes = {str(file): file.stat().st_size for file in path.rglob("*") if file.is_file()}
        used = pack_blocks_bytes(path)
        calls.log.clear()
        assert repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=1 << 40).freed_bytes > 4 * MIB
        names = {operation.name for operation in calls.log}
        assert names <= {"pwrite", "pwritev", "punch", "unlink", "fsync", "fdatasync", "ftruncate"}, names
        assert {"punch", "unlink"} & names
        for operation in calls.log:
            if operation.name in ("pwrite", "pwritev"):
                assert operation.offset + operation.length <= sizes[operation.path], "only into what a file has"
        marks = [one for one in calls.log if one.name == "pwrite" and one.offset == PUNCHED_OFFSET and one.length == 1]
        assert len({one.path for one in marks}) == len(marks)
        assert pack_blocks_bytes(path) < used
        repository.store.allow_caches(True)


@pytest.mark.logs("pack.not_sealed")
def test_claims_keep_their_open_pack(path: Path, clock: SetClock) -> None:
    """Sealing it would need other room for them: it stays, garbage and all, and nothing is allocated."""
    with open_for_writing(path, clock) as repository:
        publish(repository, many(1), "kept")
        repository.store.seal_open()
        publish(repository, many(2, count=3), "gone")
        repository.delete(repository.find("gone"))
        claims: list[Claim] = []
        while (claim := repository.store.try_claim(100 * KIB, 1)) is not None:
            claims.append(claim)
        packs = {info.index for info in repository.store.packs()}
        report = repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=1 << 40)
        assert {info.index for info in repository.store.packs()} <= packs
        assert report.freed_bytes < 300 * KIB
        for claim in claims:
            repository.store.forfeit(claim)
        assert repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=1 << 40).freed_bytes > 200 * KIB
        assert read_files(repository, repository.find("kept")) == many(1)


def test_leases_and_records_in_flight_are_spared(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        publish(repository, many(1), "a")
        repository.store.seal_open()
        repository.delete(repository.find("a"))
        real = repository.store.condemn
        leases = []

        def take_hits() -> None:
            lease = repository.store.lease()
            leases.append(lease)
            for data in list(many(1).values())[:4]:
                repository.store.put_bytes(data, final=True, lease=lease)

        def condemn(numbers: object) -> object:
            if not leases:
                thread = threading.Thread(target=take_hits)
                thread.start()
                thread.join(10)
            return real(numbers)  # type: ignore[arg-type]

        repository.store.condemn = condemn  # type: ignore[method-assign,assignment]
        report = repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=1 << 40)
        assert leases
        assert 500 * KIB < report.freed_bytes < 700 * KIB
        for data in list(many(1).values())[:4]:
            refs, _ = repository.store.put_bytes(data, final=True, lease=leases[0])
            assert all(ref.id is None or repository.store.read(ref.id).payload for ref in refs)
        leases[0].close()


def test_a_collection_ends_between_rounds(path: Path, clock: SetClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("repository.policy.collect.PUNCHES_MAX", 2)
    monkeypatch.setattr("repository.policy.collect.UNLINKS_MAX", 1)
    with open_for_writing(path, clock) as repository:
        four_deleted(repository, clock)
        asked: list[bool] = []

        def stop() -> bool:
            asked.append(True)
            return len(asked) > 3

        report = repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=1 << 40, stop=stop)
        assert 0 < report.freed_bytes < report.plan.reclaimable_bytes
        rest = repository.collector.collect(Safety.NONE, exactness=False).freed_bytes
        assert rest + report.freed_bytes >= 4 * MIB * 0.9
        assert read_files(repository, repository.find("kept")) == many(9)
        assert repository.check(read_data=True).findings == ()


# --- what bitmaps hide ---------------------------------------------------------------------------------------------


def a_line(repository: Repository) -> None:
    """Each snapshot is made from the one before and shares nothing with it: its bitmap names all before it too."""
    parent = None
    for seed in range(5):
        parent = publish(repository, many(seed), f"s{seed}", parent=parent)
    repository.store.seal_open()


def test_looking_closer_uncovers_what_bitmaps_hide_and_writes_nothing(path: Path, clock: SetClock) -> None:
    calls = RecordingCalls()
    with open_for_writing(path, clock, calls) as repository:
        a_line(repository)
        for seed in range(4):
            repository.delete(repository.find(f"s{seed}"))
        collect = repository.collector.collect
        assert collect(Safety.NONE, exactness=False, enough_bytes=1 * MIB, trash=False).freed_bytes == 0
        calls.log.clear()
        assert repository.collector.look_closer()
        assert not calls.log
        assert not repository.collector.look_closer(), "the second look finds nothing that the first did not"
        # All its elders are needed by nobody, and only as many of them go as it takes.
        report = collect(Safety.NONE, exactness=False, enough_bytes=1500 * KIB)
        assert report.expired == ("s0", "s1")
        assert report.freed_bytes >= 1500 * KIB
        assert read_files(repository, repository.find("s4")) == many(4)
        report_ = repository.check(read_data=True)
        assert report_.is_sound, report_.text()
        # A child of a snapshot whose bitmap names what is gone: sound too, and its own bitmap becomes exact later.
        publish(repository, many(4) | many(50, count=2), "child", parent=repository.find("s4"))
    with open_for_writing(path, clock) as repository:
        checked = repository.check(read_data=True)
        assert checked.is_sound, checked.text()
        assert read_files(repository, repository.find("child")) == many(4) | many(50, count=2)
        repository.gc(safety=Safety.NONE)
        assert repository.check(read_data=True).findings == ()
        assert repository.trash() == []


def test_a_look_that_is_stopped_frees_nothing_wrongly(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        a_line(repository)
        for seed in range(4):
            repository.delete(repository.find(f"s{seed}"))
        for looks in range(1, 12):
            asked: list[bool] = []

            def stop(asked: list[bool] = asked, looks: int = looks) -> bool:
                asked.append(True)
                return len(asked) > looks

            repository.collector.look_closer(stop)
            repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=300 * KIB)
            assert read_files(repository, repository.find("s4")) == many(4)
        report = repository.check(read_data=True)
        assert report.is_sound, report.text()


# --- giving snapshots up ---------------------------------------------------------------------------------------------


def test_the_plan_to_thin_is_the_shortest_and_tells_exact_bytes(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        shared = many(70)
        for seed in range(5):
            publish(repository, shared | many(seed), f"s{seed}")
        repository.store.seal_open()
        order = [repository.find(f"s{seed}").snapshot_id for seed in (3, 1, 4, 0, 2)]
        by_name = {slot.snapshot_id: slot for slot in repository.listed()}
        curve = [repository.reclaimable_bytes([by_name[one] for one in order[:count]]) for count in range(6)]
        assert curve == sorted(curve)
        assert curve[5] > curve[4] + 900 * KIB, "what all share goes with the last"
        for count in range(1, 6):
            for wanted in (curve[count - 1] + 1, curve[count]):
                plan = repository.collector.plan_thinning(order, wanted)
                assert plan is not None
                assert plan.snapshots == tuple(order[:count])
                assert plan.reclaimable_bytes == curve[count]
        assert repository.collector.plan_thinning(order, curve[5] + 1) is None
        nothing = repository.collector.plan_thinning([], 1)
        assert nothing is None
        before = pack_blocks_bytes(path)
        for one in order[:3]:
            repository.delete(by_name[one])
        report = repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=curve[3])
        assert report.freed_bytes == curve[3]
        assert_freed(report, before - pack_blocks_bytes(path))


def test_volumes_that_cannot_punch_plan_whole_packs(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        repository.volume.believe("B")
        for seed in range(4):
            publish(repository, many(seed, count=30), f"s{seed}")  # 3 MB each, in packs of 4 MiB
        repository.store.seal_open()
        slots = [repository.find(f"s{seed}") for seed in (0, 1, 2)]
        whole = {info.allocated_bytes for info in repository.store.packs()}
        promised = repository.reclaimable_bytes(slots)
        assert promised in {sum(some) for some in _subsets(sorted(whole))}
        plan = repository.collector.plan_thinning([slot.snapshot_id for slot in slots], promised)
        assert plan is not None
        assert plan.snapshots == tuple(slot.snapshot_id for slot in slots)


def _subsets(items: list[int]) -> list[tuple[int, ...]]:
    found: list[tuple[int, ...]] = [()]
    for item in items:
        found += [(*some, item) for some in found]
    return found


def test_a_slot_in_use_is_not_given_up(path: Path, clock: SetClock) -> None:
    with open_for_writing(path, clock) as repository:
        four_deleted(repository, clock)
        needed = next(slot for slot in repository.trash() if slot.name == "c")
        with repository.using(needed):
            report = repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=900 * KIB)
            assert report.expired == ("a",)
            assert read_files(repository, needed) == many(2)


def test_growth_meets_no_space_but_collecting_does_not(path: Path, clock: SetClock) -> None:
    """The quota is used up: putting fails, freeing works, putting works again."""
    with open_for_writing(path, clock) as repository:
        four_deleted(repository, clock)
        refuse = [True]

        def guard(_: int) -> None:
            if refuse[0]:
                raise NoSpaceError("full", 1)

        repository.store.guard_growth(guard)
        report = repository.collector.collect(Safety.NONE, exactness=False, enough_bytes=2 * MIB)
        assert report.freed_bytes >= 2 * MIB
        refuse[0] = False
        publish(repository, many(60), "new")
        assert read_files(repository, repository.find("new")) == many(60)
