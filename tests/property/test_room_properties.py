"""Devices on nodes against a naive count, and schedules on nodes that fail."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.workloads import Schedule, workloads

from onefleet.sim.jobs.catalog import DRF, FIFO, FIRST_FIT, RANDOM
from onefleet.sim.jobs.job import Checkpoints, Failures, Fleet, Price, Rules
from onefleet.sim.jobs.room import Nodes
from onefleet.sim.jobs.simulate import progress_in, simulate, wall_for

SIZES = st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=6)


def could_lie(sizes, free, down, count, scatter):
    """Whether a gang has a place, by the rules and by trying everything."""
    up = [f for node, f in enumerate(free) if not down[node]]
    if scatter or count <= max(sizes):
        return sum(up) >= count if scatter else any(f >= count for f in up)
    whole = sorted(
        (s for node, s in enumerate(sizes) if not down[node] and free[node] == s), reverse=True
    )
    rest, taken = count, []
    for size in whole:  # the largest first, as long as they are wanted whole
        if size <= rest:
            rest -= size
            taken.append(size)
    for size in taken:
        up.remove(size)
    return rest == 0 or any(f >= rest for f in up)


@settings(max_examples=150)
@given(sizes=SIZES, scatter=st.booleans(), data=st.data())
def test_nodes_give_and_take_what_is_there(sizes, scatter, data):
    room = Nodes(sizes, scatter=scatter)
    free, down, held = list(sizes), [False] * len(sizes), []
    for _ in range(data.draw(st.integers(1, 25))):
        act = data.draw(st.sampled_from(["take", "give", "lose", "repair"]))
        node = data.draw(st.integers(0, len(sizes) - 1))
        if act == "take":
            count = data.draw(st.integers(1, sum(sizes)))
            fits = room.fits(count)
            assert fits == could_lie(sizes, free, down, count, scatter)
            if fits:
                where = room.take(count)
                assert sum(part for _, part in where) == count
                assert len({place for place, _ in where}) == len(where)
                for place, part in where:
                    assert not down[place]
                    free[place] -= part
                held.append((count, where))
        elif act == "give" and held:
            count, where = held.pop(data.draw(st.integers(0, len(held) - 1)))
            room.give(count, where)
            for place, part in where:
                free[place] += part
        elif act == "lose" and not down[node]:
            room.lose(node)
            down[node] = True
        elif act == "repair" and down[node]:
            room.repair(node)
            down[node] = False
        up = [n for n in range(len(sizes)) if not down[n]]
        assert min(free) >= 0
        assert room.free == sum(free[n] for n in up)
        assert room.devices == sum(sizes[n] for n in up)
        assert [room.free_on(n) for n in range(len(sizes))] == [
            0 if down[n] else free[n] for n in range(len(sizes))
        ]


@settings(max_examples=60)
@given(
    jobs=workloads(devices=6, unit=10, until=40, longest=30),
    named=st.sampled_from([FIFO, FIRST_FIT, DRF, RANDOM]),
    scatter=st.booleans(),
    every=st.none() | st.builds(Checkpoints, st.integers(1, 60), st.integers(0, 9)),
    detect=st.integers(0, 20),
    seed=st.integers(0, 5),
)
def test_every_job_ends_although_nodes_fail(jobs, named, scatter, every, detect, seed):
    schedule = Schedule()
    rules = Rules(
        Fleet.of_nodes([4, 4, 2], scatter=scatter),
        Price(start_ms=1, restore_ms=3),
        checkpoints=every,
        failures=Failures(device_mttf_ms=6_000, repair_ms=15, detect_ms=detect),
    )
    outcome = simulate(jobs, rules, named, seed=seed, observe=schedule.observe)
    schedule.check(10, outcome)
    assert outcome.lost <= outcome.wasted
    if outcome.failures == 0:
        assert outcome.lost == 0


@given(st.integers(0, 10_000), st.integers(1, 500), st.integers(0, 500))
def test_progress_never_falls_and_checkpoints_hold_a_part_of_it(wall, every, cost):
    rhythm = Checkpoints(every, cost)
    made, held = progress_in(wall, rhythm)
    assert 0 <= held <= made <= wall
    assert progress_in(wall + 1, rhythm)[0] - made in (0, 1)
    if wall:
        assert progress_in(wall_for(wall, rhythm), rhythm)[0] == wall
