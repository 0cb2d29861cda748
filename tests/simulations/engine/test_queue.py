"""What is handed to which worker: every job exactly once, whatever the order of takes, losses and new arrivals."""

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from simulations.engine.grid import Job
from simulations.engine.queue import LARGEST_BATCH, TARGET_S, Queue


def job(device: int, number: int | None = None, kind: str = "train", alone: bool = False) -> Job:
    """A job whose id is `number`, by default its device."""
    request = SimpleNamespace(message_id=str(device if number is None else number), message_type=kind)
    return Job(request, device, 1, alone=alone)


def jobs(*devices: int, **kwargs) -> list[Job]:
    return [job(device, **kwargs) for device in devices]


def devices_of(batch: list[Job]) -> list[int]:
    return [job.device for job in batch]


def take_all(queue: Queue, worker: int, workers: int) -> list[list[int]]:
    """The devices of every batch until nothing waits."""
    batches = []
    while batch := queue.take(worker, workers):
        batches.append(devices_of(batch))
    return batches


def at_home(queue: Queue, homes: dict[int, list[int]]) -> None:
    """Let each worker have handled these devices."""
    for worker, devices in homes.items():
        queue.add(jobs(*devices), {worker})
        assert sorted(sum(take_all(queue, worker, 1), [])) == sorted(devices)


def quick(queue: Queue, seconds: float, kind: str = "train") -> Queue:
    """A device takes so long."""
    queue.took(kind, seconds * 4, devices=4)
    return queue


# -- whatever happens


class AnyOrder(RuleBasedStateMachine):
    """Jobs come, are taken, come back because their worker was lost, are given up; workers go and come."""

    @initialize(workers=st.integers(1, 4))
    def start(self, workers):
        self.queue, self.workers, self.next_worker, self.next_id = Queue(), set(range(workers)), workers, 0
        self.waiting: dict[str, Job] = {}
        self.first: list[str] = []  # of those, the ones that lost their worker, in the order in which they are due
        self.out: dict[int, list[Job]] = {}
        self.handed, self.expected = Counter(), Counter()

    @rule(devices=st.lists(st.integers(0, 9), max_size=12), kind=st.sampled_from(["train", "query"]))
    def add(self, devices, kind):
        made = []
        for device in devices:
            made.append(job(device, self.next_id, kind))
            self.next_id += 1
        self.queue.add(made, self.workers)
        self.waiting |= {one.id: one for one in made}
        self.expected.update(one.id for one in made)

    @rule(data=st.data())
    def take(self, data):
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        waited = len(self.waiting)
        batch = self.queue.take(worker, len(self.workers))
        assert bool(batch) == bool(waited)
        self._check(batch, waited)
        self.out.setdefault(worker, []).extend(batch)

    def _check(self, batch, waited):
        ids = [one.id for one in batch]
        assert len(set(ids)) == len(ids)
        due = self.first[: len(ids)]
        assert ids[: len(due)] == due, "those that lost their worker come first"
        self.first = self.first[len(due) :]
        for one in batch:
            assert self.waiting.pop(one.id) is one
        self.handed.update(ids)
        assert len({one.request.message_type for one in batch}) <= 1
        assert len(batch) == 1 or not any(one.alone for one in batch)
        assert len(batch) <= max(1, -(-waited // (2 * len(self.workers)))) and len(batch) <= LARGEST_BATCH

    @rule(seconds=st.floats(1e-7, 10), kind=st.sampled_from(["train", "query"]), devices=st.integers(1, 9))
    def took(self, seconds, kind, devices):
        self.queue.took(kind, seconds, devices)

    @rule(data=st.data(), is_replaced=st.booleans())
    def lose_a_worker(self, data, is_replaced):
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        again = self.out.pop(worker, [])
        for one in again:
            one.alone = data.draw(st.booleans())
        self.queue.add_again(again)
        self.waiting |= {one.id: one for one in again}
        self.first = [one.id for one in again] + self.first
        self.expected.update(one.id for one in again)
        if not is_replaced and len(self.workers) > 1:
            self.workers.remove(worker)
            self.queue.gone(worker)

    @rule()
    def a_worker_joins(self):
        self.workers.add(self.next_worker)
        self.next_worker += 1

    @rule(data=st.data())
    def forget(self, data):
        everything = sorted({*self.waiting, *(one.id for batch in self.out.values() for one in batch), "unknown"})
        ids = set(data.draw(st.lists(st.sampled_from(everything), max_size=5)))
        self.queue.forget(ids)
        for number in ids & self.waiting.keys():
            del self.waiting[number]
            self.expected[number] -= 1
        self.first = [number for number in self.first if number not in ids]

    @invariant()
    def its_length_is_what_waits(self):
        assert len(self.queue) == len(self.waiting)

    def teardown(self):
        if not hasattr(self, "queue"):
            return
        while self.waiting:
            for worker in sorted(self.workers):
                waited = len(self.waiting)
                batch = self.queue.take(worker, len(self.workers))
                assert bool(batch) == bool(waited)
                self._check(batch, waited)
        assert +self.handed == +self.expected
        assert self.queue.take(min(self.workers), len(self.workers)) == [] and len(self.queue) == 0


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(stateful_step_count=40)


# -- who takes what


def test_an_empty_queue_hands_out_nothing():
    queue = Queue()
    assert (queue.take(0, 1), len(queue)) == ([], 0)


def test_devices_without_a_home_go_to_any_in_order():
    queue = Queue()
    queue.add(jobs(5, 3, 4), {0, 1})
    assert [devices_of(queue.take(worker, 2)) for worker in (1, 0, 1)] == [[5], [3], [4]]


def test_devices_go_home_if_their_worker_asks():
    queue = Queue()
    at_home(queue, {0: [0, 1, 2], 1: [3, 4, 5]})
    queue.add(jobs(0, 3, 1, 4, 2, 5), {0, 1})
    taken = {0: [], 1: []}
    for _ in range(3):
        for worker in taken:
            taken[worker] += devices_of(queue.take(worker, 2))
    assert taken == {0: [0, 1, 2], 1: [3, 4, 5]}


def test_home_is_where_a_device_was_last():
    queue = Queue()
    at_home(queue, {0: [0, 1]})
    at_home(queue, {1: [1]})
    queue.add(jobs(0, 1), {0, 1})
    assert devices_of(queue.take(1, 2)) == [1] and devices_of(queue.take(0, 2)) == [0]


def test_own_devices_come_before_those_of_nobody():
    queue = Queue()
    at_home(queue, {0: [7]})
    queue.add(jobs(1, 2, 7), {0, 1})
    assert take_all(queue, 0, 2) == [[7], [1], [2]]


def test_an_idle_worker_takes_from_the_longest_other_queue():
    """From its end, which its owner would reach last."""
    queue = Queue()
    at_home(queue, {0: [0, 1], 1: [2, 3, 4, 5], 2: [6]})
    queue.add(jobs(*range(7)), {0, 1, 2, 3})
    assert [devices_of(queue.take(3, 4)) for _ in range(3)] == [[5], [4], [1]]  # 0: 2 left, 1: 4, 3, 2 left; the first of equals
    assert devices_of(queue.take(1, 4)) == [2] and devices_of(queue.take(2, 4)) == [6]


def test_what_was_taken_from_another_has_a_new_home():
    queue = Queue()
    at_home(queue, {0: [0, 1]})
    queue.add(jobs(0, 1), {0, 1})
    assert devices_of(queue.take(1, 2)) == [1]
    assert devices_of(queue.take(0, 2)) == [0]
    queue.add(jobs(0, 1), {0, 1})
    assert devices_of(queue.take(1, 2)) == [1] and devices_of(queue.take(0, 2)) == [0]


def test_devices_of_a_worker_that_is_not_there_go_to_any():
    queue = Queue()
    at_home(queue, {0: [0], 1: [1]})
    queue.add(jobs(0, 1, 2), {0})
    assert take_all(queue, 0, 1) == [[0], [1], [2]]
    queue.add(jobs(8, 9), {2})
    assert take_all(queue, 2, 1) == [[8], [9]]


def test_what_waits_for_a_worker_that_goes_may_go_to_any():
    """In the order of arrival, behind what any could take before; a worker with devices of its own takes those first."""
    queue = Queue()
    at_home(queue, {0: [0], 1: [1, 2]})
    queue.add(jobs(5, 1, 0, 2), {0, 1})
    queue.gone(1)
    queue.gone(4)  # had none
    assert len(queue) == 4
    assert take_all(queue, 0, 1) == [[0], [5], [1], [2]]


# -- those that lost their worker


def test_jobs_that_lost_their_worker_come_first_and_in_their_order():
    queue = Queue()
    at_home(queue, {0: [0]})
    queue.add(jobs(0, 1, 2, 3), {0})
    lost = queue.take(0, 1) + queue.take(0, 1)
    assert devices_of(lost) == [0, 1]
    queue.add_again(lost)
    assert len(queue) == 4
    queue.add_again(jobs(9))
    assert take_all(queue, 1, 2) == [[9], [0], [1], [2], [3]]


def test_alone_ones_are_never_batched():
    queue = quick(Queue(), 0.001)
    queue.add(jobs(*range(10)), {0})
    queue.add_again([job(20), job(21, alone=True), job(22, alone=True), job(23)])
    batches = take_all(queue, 0, 1)
    assert batches[:3] == [[20], [21], [22]]  # 20 is not alone, but what comes next is
    assert batches[3] == [23, 0, 1, 2, 3, 4]  # 11 wait: at most ceil(11 / 2)
    assert sorted(sum(batches, [])) == [*range(10), *range(20, 24)]


# -- how many at once


def test_one_at_a_time_while_nothing_is_known():
    queue = quick(Queue(), 0.0001, kind="query")
    queue.add(jobs(*range(100)), {0})
    assert devices_of(queue.take(0, 1)) == [0] and len(queue) == 99


@pytest.mark.parametrize(
    ("seconds", "size"),
    [(10.0, 1), (TARGET_S, 1), (0.03, 1), (0.025, 2), (0.01, 5), (0.001, 50), (1e-5, LARGEST_BATCH), (0.0, LARGEST_BATCH)],
)
def test_batches_grow_when_devices_are_quick(seconds, size):
    """As many as fit into 0.05 s, 64 at most; 1000 wait for two workers, so a fair share is no limit."""
    queue = quick(Queue(), seconds)
    queue.add(jobs(*range(1000)), {0, 1})
    assert devices_of(queue.take(0, 2)) == list(range(size))


@pytest.mark.parametrize(("waiting", "workers", "size"), [(100, 1, 50), (100, 2, 25), (101, 2, 26), (100, 4, 13), (3, 4, 1), (1, 1, 1)])
def test_nobody_takes_more_than_half_a_fair_share_of_what_waits(waiting, workers, size):
    """Half of what waits, divided by the workers, rounded up."""
    queue = quick(Queue(), 0.001)
    queue.add(jobs(*range(waiting)), set(range(workers)))
    assert len(queue.take(0, workers)) == size and len(queue) == waiting - size


def test_batches_shrink_towards_the_end():
    """16 for one worker: half of 16, of 8, of 4, of 2, and the last."""
    queue = quick(Queue(), 0.0005)
    queue.add(jobs(*range(16)), {0})
    assert [len(batch) for batch in take_all(queue, 0, 1)] == [8, 4, 2, 1, 1]


def test_how_long_a_device_takes_is_averaged_over_batches_and_told_apart_by_kind():
    """Means of 1/64 and 3/64 s are one of 1/32: a batch of 0.05 * 32 = 1.6. Then 1/128: (1/32 + 1/128) / 2 = 5/256, a batch of 2.56."""
    queue = Queue()
    sizes = []
    for seconds, devices in ((1 / 64, 1), (6 / 64, 2), (1 / 16, 8)):
        queue.took("train", seconds, devices)
        queue.add(jobs(*range(100)), {0})
        sizes.append(len(queue.take(0, 1)))
        queue.forget({str(device) for device in range(100)})
    assert sizes == [3, 1, 2]
    queue.took("query", 0.001, 1)
    queue.add(jobs(*range(100)), {0})
    assert len(queue.take(0, 1)) == 2


def test_message_types_are_not_mixed_in_a_batch():
    queue = quick(quick(Queue(), 0.001), 0.001, kind="query")
    queue.add([job(0), job(1), job(2, kind="query"), job(3, kind="query"), job(4), *jobs(*range(10, 30))], {0})
    assert [devices_of(queue.take(0, 1)) for _ in range(2)] == [[0, 1], [2, 3]]
    assert devices_of(queue.take(0, 1))[0] == 4


def test_a_batch_that_ends_before_another_kind_leaves_that_to_its_home():
    """Worker 2 has nothing of its own: what it does not take from the others still waits for them, and does not jump the queue."""
    queue = quick(Queue(), 0.001)
    at_home(queue, {0: [0, 1, 2], 1: [5]})
    queue.add([job(0), job(1, kind="query"), job(2), job(5, kind="query"), *jobs(20)], {0, 1})
    assert devices_of(queue.take(2, 1)) == [20, 2]  # at most 3 of 5; 1 would be next, the last of the longest queue
    assert [devices_of(queue.take(worker, 3)) for worker in (1, 0, 0)] == [[5], [0], [1]]


# -- what nobody waits for


def test_forgotten_jobs_are_not_handed_out_wherever_they_wait():
    queue = Queue()
    at_home(queue, {0: [0, 1], 1: [2, 3]})
    queue.add(jobs(0, 1, 2, 3, 4, 5), {0, 1})
    queue.add_again(jobs(6, 7))
    queue.forget({"1", "3", "5", "7", "unknown"})
    assert len(queue) == 4
    assert take_all(queue, 0, 2) == [[6], [0], [4], [2]]
