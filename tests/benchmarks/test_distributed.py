"""What processes cost: measured by real ones, concluded from known numbers."""

import json
import shutil
from math import inf

import pytest

from benchmarks import cluster, distributed, scaling_page
from benchmarks.cluster import Assumed, Collective, Fitted, Link, Plan
from benchmarks.distributed import Options, Result, bytes_sent, say_results
from benchmarks.machine import REPOSITORY
from mmattn.errors import UserError

MB = 1_000_000
FITTED = Fitted(
    step=0.01,
    clip=0.005,
    process=Link(0, 6e-6, 4e9),
    loopback=Link(1e-4, 5e-5, 1e9),
    collectives=(
        Collective("all-gather", MB, "step"),
        Collective("reduce-scatter", MB, "step"),
        Collective("all-reduce", 8000, "dispatch"),
    ),
    dispatch=8,
    batches=1e4,
)
EASY = Assumed(cores=4, latency=1e-3, network=1e9, flow=5e8, memory=inf, clips=1000)
PROGRAM = """\
%region_0.1 (x: f32[], y: f32[]) -> f32[] {
  ROOT %add = f32[] add(%x, %y)
}

%body (state: (f32[5], f32[2,3])) -> (f32[5], f32[2,3]) {
  %all_gather.8 = f32[10]{0} all-gather(%share), channel_id=1, replica_groups={{0,1}}
  %all-reduce.1 = (f32[2,3]{1,0}, f32[]) all-reduce(%a, %b), to_apply=%region_0.1
  %reduce_scatter.2 = f32[5]{0} reduce-scatter(%gradient), dimensions={0}
}

ENTRY %main (state: f32[5]) -> pred[2,4] {
  ROOT %all_gather.9 = pred[2,4]{1,0} all-gather(%fine), dimensions={0}
}
"""


@pytest.mark.slow
def test_processes_are_measured_and_the_page_is_written(commands, tmp_path):
    page = tmp_path / "page.md"
    text = commands.run(
        *("benchmarks.scaling_page", "--page", page, "--shapes", "1x2", "2x1"),
        # One number of clips a device, 12: there is one program to compile.
        *("--batch", 24, "--clips", 12, "--sizes", 1000, 5001, "--rounds", 1),
        *("--model.modalities", "video", "--model.units", "video=4"),
        *("--model.head-units", 8, "--model.head-dropout", 0.3),
    )
    assert "1,000" in text and "2 × 1" in text
    one, two = json.loads(page.with_suffix(".json").read_text())["results"]
    assert (one["processes"], one["devices"], two["processes"], two["devices"]) == (1, 2, 2, 2)
    assert one["parameters"] == two["parameters"] > 1e3
    for found in (one, two):
        assert list(found["exchange"]) == list(found["total"]) == ["1000", "5001"]
        assert list(found["steps"]) == ["12"]
        times = (found["exchange"], found["total"], found["steps"])
        assert min(found["batches"], *(x for kind in times for x in kind.values())) > 0
        # The gradient is summed and scattered once, the parameters gathered once.
        size = -(-one["parameters"] // 2) * 8
        step = [tuple(one) for one in found["collectives"] if one[2] == "step"]
        assert step.count(("reduce-scatter", size, "step")) == 1
        assert step.count(("all-gather", size, "step")) == 1
        assert {kind for kind, small, _ in step if small < 500} == {"all-reduce"}
    assert "## The model" in page.read_text() and page.with_suffix(".png").exists()


@pytest.mark.slow
def test_the_page_is_what_its_measurements_say(tmp_path):
    """Nobody changes a number by hand, or the model without writing the page again."""
    (tmp_path / "below").mkdir()
    found, page = tmp_path / "found.json", tmp_path / "below" / "other.md"
    shutil.copy(REPOSITORY / "docs" / "scaling.json", found)
    scaling_page.Page(page=page, json=found, stored=True)()
    written = page.read_text()
    # What the page refers to lies where it says, also under other names.
    assert "[../found.json](../found.json)" in written and "(other.png)" in written
    assert page.with_suffix(".png").exists()
    written = written.replace("../found.json", "scaling.json").replace("other.png", "scaling.png")
    assert written == (REPOSITORY / "docs" / "scaling.md").read_text()


def test_without_measurements_no_page(tmp_path):
    with pytest.raises(UserError, match="--stored"):
        scaling_page.Page(page=tmp_path / "page.md", stored=True)()


def result(processes=1, devices=2, steps=None, exchange=None, total=None):
    return Result(
        processes=processes,
        devices=devices,
        parameters=10,
        frames={},
        dispatch=8,
        exchange=exchange or {8: 0.001},
        total=total or {8: 0.001},
        steps=steps or {},
        batches=1e4,
        collectives=list(FITTED.collectives),
    )


def test_an_exchange_sends_the_vector_nearly_twice():
    assert bytes_sent(1000, 1) == 0
    assert bytes_sent(1000, 2) == 4000
    assert bytes_sent(1000, 4) == 6000


def test_scaling_is_relative_to_the_first(monkeypatch):
    said = []
    monkeypatch.setattr(distributed, "say_table", lambda *table: said.append(table))
    two = result(1, 2, {12: 0.24}, {8: 0.001}, {8: 0.003})
    four = result(2, 4, {6: 0.16, 12: 0.48}, {8: 0.002}, {8: 0.004})
    say_results([two, four], batch=24)
    exchange, total, scaling = (rows for _, _, rows in said)
    assert exchange == [("8", "1.00 (32)", "2.00 (48)")]
    assert total == [("8", "3.00 (32)", "4.00 (48)")]
    assert scaling == [("1 × 2", "100 (1.00)", "100 (1.00)"), ("2 × 2", "150 (1.50)", "100 (1.00)")]


@pytest.mark.parametrize("shape", ["5x1", "0x1", "1x7", "2", "2x1x1", "axb"])
def test_devices_must_divide_the_batch(shape):
    with pytest.raises(UserError, match="--shapes"):
        Options(shapes=(shape,))()


def test_the_collectives_of_a_program():
    assert cluster.read_program(PROGRAM, ranks=2) == [
        Collective("all-gather", 40, "step"),
        Collective("all-reduce", 24, "step"),
        Collective("all-reduce", 4, "step"),
        Collective("reduce-scatter", 40, "step"),
        Collective("all-gather", 8, "dispatch"),
    ]


def test_collectives_inside_a_process_and_on_loopback():
    gather, scatter, total = FITTED.collectives
    process, loopback = FITTED.process, FITTED.loopback
    assert cluster.inside(gather, 1, loopback, sockets=True) == 0
    # 2 doublings of 6 µs + 1 MB at 4 GB/s.
    assert cluster.inside(gather, 4, process, sockets=False) == pytest.approx(262e-6)
    # 100 µs + 3 messages of 50 µs + ¾ MB at 1 GB/s; halving needs 2; a sum goes round twice.
    assert cluster.inside(gather, 4, loopback, sockets=True) == pytest.approx(1000e-6)
    assert cluster.inside(scatter, 4, loopback, sockets=True) == pytest.approx(950e-6)
    assert cluster.inside(total, 4, loopback, sockets=True) == pytest.approx(412e-6)


def test_collectives_between_machines():
    gather, scatter, total = FITTED.collectives

    def seconds(one, machines, each, assumed=EASY):
        return cluster.collective_seconds(one, machines, each, FITTED, assumed)

    assert seconds(gather, 1, 4) == pytest.approx(262e-6)
    # 7 messages, of which 2 between machines, and ⅞ MB through one connection.
    assert seconds(gather, 2, 4) == pytest.approx(0.1e-3 + 2e-3 + 0.25e-3 + 1.75e-3)
    assert seconds(total, 2, 4) == pytest.approx(0.1e-3 + 2 * (2e-3 + 0.25e-3 + 14e-6))
    # On the machine ¾ MB in 2 messages; between the two half of it in 1, by the whole network.
    assert seconds(scatter, 2, 4) == pytest.approx(0.95e-3 + 1e-3 + 0.5e-3)
    # A ring of 2 machines has 1 message, and the devices of a process meet before it.
    joined = Assumed(**{**EASY.__dict__, "joined": True})
    assert seconds(gather, 2, 4, joined) == pytest.approx(0.262e-3 + 0.1e-3 + 1e-3 + 1e-3)


def test_a_fit_finds_the_link_that_made_the_timings():
    for sockets, link in ((True, FITTED.loopback), (False, FITTED.process)):

        def seconds(ranks, kinds, size, sockets=sockets, link=link):
            return sum(cluster.inside(Collective(k, size, ""), ranks, link, sockets) for k in kinds)

        timings = [
            (ranks, kinds, size, seconds(ranks, kinds, size))
            for ranks in (2, 4)
            for kinds in (("reduce-scatter", "all-gather"), ("all-reduce",))
            for size in (4000, 10 * MB)
        ]
        assert cluster.fit_link(timings, sockets) == pytest.approx(link)
        assert cluster.fit_link(timings, sockets, without="start").start == 0
        assert cluster.fit_link(timings, sockets, without="latency").latency == 0


def test_compute_is_what_a_step_takes_beside_its_collectives():
    steps = {clips: 0.003 + 0.01 + 0.005 * clips for clips in (1, 4, 24)}
    assert cluster.fit_compute(steps, 0.003) == pytest.approx((0.01, 0.005))


def test_a_step_on_the_machine_that_was_measured():
    assert cluster.predict(FITTED, 1, 1, 4, cores=2) == pytest.approx(0.03)
    # Twice as many devices as cores take turns; of a dispatch's collective an eighth is a step's.
    exchange = 1000e-6 + 950e-6 + 412e-6 / 8
    assert cluster.predict(FITTED, 4, 1, 4, cores=2) == pytest.approx(2 * (0.03 + exchange))


def test_a_plan_takes_the_devices_that_are_quickest():
    slow = FITTED._replace(process=Link(0, 1.0, inf))  # a second for devices to meet
    assert cluster.plan(slow, EASY, 1, 8) == Plan(1, 1, 8, pytest.approx(0.05), "compute")
    one = cluster.plan(FITTED, EASY, 1, 8)
    meeting = 2 * 262e-6 + (12e-6 + 4e-6) / 8
    assert one == Plan(1, 4, 8, pytest.approx(0.02 + meeting), "compute")
    assert one.rate == pytest.approx(8 / one.seconds)
    assert cluster.plan(FITTED, EASY, 9, 8) is None
    assert cluster.plan(FITTED._replace(batches=10), EASY, 1, 8).limit == "making batches"


def test_the_volume_reads_the_clips_that_memory_does_not_hold():
    def step(**assumed):
        half = 500 * cluster.clip_bytes()
        disk = Assumed(cores=4, clips=1000, cache=half, memory=inf, **assumed)
        found = cluster.plan(FITTED, disk, 1, 8)
        return found.seconds, found.limit

    # 4 clips of 8, with 4 reads each.
    assert step(reads=8) == (pytest.approx(2.0), "reading")
    assert step(disk=cluster.clip_bytes()) == (pytest.approx(4.0), "reading")
    assert step()[1] == "compute"


def test_machines_pay_while_a_clip_costs_little_more():
    def last(*shares, **assumed):
        plans = [Plan(n, 1, 100, 1.0 / (n * share), "") for n, share in enumerate(shares, 1)]
        return cluster.paying(plans, Assumed(**assumed)).machines

    assert last(1, 0.7, 0.6) == 2
    assert last(1, 0.7, 0.6, dearer=1.7) == 3
    # Three pay again, but two do not.
    assert last(1, 0.6, 0.7) == 1


def test_what_a_corpus_costs():
    # 1,440 and 7,442 clips of 3.838 and 2.666 s; a second has 100 · 364 + 15 · 2,056 bytes.
    assert cluster.clip_bytes() == pytest.approx(2.856 * 67_240, rel=1e-4)
    assumed = Assumed(clips=36 * 10**6, epochs=2, disk=1e9, reads=4000)
    two = Plan(2, 48, 1000, 0.1, "")
    assert assumed.on_demand == pytest.approx(4.08)
    gigabytes = 36e6 * cluster.clip_bytes() / 1e9
    hours = 2 + gigabytes / 3600
    assert cluster.hours(two, assumed) == pytest.approx(hours)
    gib = 20 + 2.5 * gigabytes * 1e9 / 2**30  # as `fab deploy` makes it
    volume = (gib * 0.08 + 875 * 0.04 + 1000 * 0.005) / 730
    assert cluster.dollars(two, assumed) == pytest.approx(2 * (4.08 + volume) * hours)
    assert cluster.dollars(two, assumed, spot=True) == pytest.approx(2 * (1.56 + volume) * hours)


def test_the_corpus_comes_as_fast_as_network_and_volume_allow():
    clips = 3.6e12 / cluster.clip_bytes()  # 3,600 GB
    assert cluster.copying(Assumed(clips=clips, disk=1e9, network=2e9)) == pytest.approx(1)
    assert cluster.copying(Assumed(clips=clips, disk=1e9, network=0.5e9)) == pytest.approx(2)


def test_the_model_is_fitted_to_all_cores():
    shapes = [(1, 1), (1, 2), (2, 2), (2, 4), (4, 4)]
    results = [result(*shape) for shape in shapes]
    assert scaling_page.bases(results, 2) == (results[1], results[2])
    assert scaling_page.bases(results, 4) == (results[1], results[4])
    with pytest.raises(UserError, match="--shapes"):
        scaling_page.bases(results[:2], 2)
