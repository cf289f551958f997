"""Fair share between tenants: weights, the bound on starvation, places in the batch; what they share of prefixes."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.control.order.fair_share import LEAST_PLACES, OUTPUT_WEIGHT, PLACES, FairShare
from penstock.control.request import Request
from penstock.testing import Driver, ScriptedExecutor, small_replica

LONGEST_PROMPT, LONGEST_OUTPUT = 24, 12


def driver(max_seqs: int = 4, blocks: int = 128, **options: object) -> Driver:
    settings_: dict[str, object] = {"order": "fair_share", "token_budget": 32, "memory": "paged", **options}
    return Driver(
        small_replica(blocks=blocks, max_seqs=max_seqs, **settings_), ScriptedExecutor(blocks=blocks, block_tokens=4)
    )


def counters(run: Driver) -> dict[str, float]:
    order = run.replica._order
    assert isinstance(order, FairShare)
    return order.counters(run.replica._decode_set.clock)


jobs = st.lists(
    st.tuples(st.integers(1, LONGEST_PROMPT), st.integers(1, LONGEST_OUTPUT)), min_size=8, max_size=30
)  # fmt: skip
tenants = st.lists(st.tuples(st.sampled_from([0.5, 1.0, 2.0, 5.0]), jobs), min_size=2, max_size=4)


@settings(max_examples=60, deadline=None)
@given(tenants, st.sampled_from([2, 8, 12]))
def test_while_all_have_work_no_tenant_runs_ahead_of_another_by_more_than_what_the_batch_holds(
    crowd: list[tuple[float, list[tuple[int, int]]]], max_seqs: int
) -> None:
    """The bound of the paper (theorem 4.4): twice the larger of a prompt and of what a full batch still decodes; each
    tenant's work counts over its weight. It does not grow with time, which is what starvation would do."""
    run = driver(max_seqs)
    waiting = {}
    for number, (weight, work) in enumerate(crowd):
        waiting[f"t{number}"] = len(work)
        for job, (prompt, output) in enumerate(work):
            run.submit(
                Request(
                    id=f"t{number}-{job}", prompt=tuple(range(prompt)), max_tokens=output, tenant=f"t{number}",
                    weight=weight,
                )
            )  # fmt: skip
    least = min(weight for weight, _ in crowd)
    bound = 2 * max(LONGEST_PROMPT, OUTPUT_WEIGHT * max_seqs * LONGEST_OUTPUT) / least
    order = run.replica._order
    assert isinstance(order, FairShare)
    while len(order._waiting) == len(crowd) and run.tick():
        found = counters(run)
        assert max(found.values()) - min(found.values()) <= bound
    run.run()
    assert len(run.ended) == sum(waiting.values()), "everybody is served in the end"
    assert order._running == 0
    assert all(tenant.running == 0 for tenant in order._tenants.values())


def test_a_weight_of_three_gets_three_times_the_work() -> None:
    run = driver(max_seqs=12)
    for number in range(80):
        for tenant, weight in (("one", 1.0), ("three", 3.0)):
            run.submit(
                Request(id=f"{tenant}{number}", prompt=tuple(range(12)), max_tokens=8, tenant=tenant, weight=weight)
            )
    while run.replica.statistics().finished < 80:
        run.tick()
    order = run.replica._order
    assert isinstance(order, FairShare)
    work = {name: tenant.settled for name, tenant in order._tenants.items()}
    assert 2.5 < work["three"] / work["one"] < 3.5


def test_a_weight_that_changes_changes_nothing_of_what_was() -> None:
    run = driver()
    run.submit(Request(id="a", prompt=tuple(range(12)), max_tokens=12, tenant="t"))
    for _ in range(4):
        run.tick()
    before = counters(run)["t"]
    run.submit(Request(id="b", prompt=tuple(range(12)), max_tokens=12, tenant="t", weight=4.0))
    assert counters(run)["t"] == before
    run.tick()
    assert before < counters(run)["t"] < before + 12


def test_who_comes_while_another_floods_finds_a_place_in_the_batch_at_once() -> None:
    run = driver(max_seqs=16)
    run.submit(Request(id="early", prompt=(1,) * 4, max_tokens=1, tenant="quiet"))
    for number in range(60):
        run.submit(Request(id=f"f{number}", prompt=(number,) * 4, max_tokens=12, tenant="flood"))
    for _ in range(6):
        run.tick()
    running = run.replica.statistics().running
    assert 12 <= running < 16, "most of the batch is used, and not all of it"
    run.submit(Request(id="late", prompt=(7,) * 4, max_tokens=2, tenant="quiet"))
    run.tick()
    assert run.outputs["late"], "no answer of the flood had to end first"
    run.run()


def test_a_tenant_alone_gets_the_whole_batch_as_does_everybody_in_a_small_one() -> None:
    for max_seqs, names in ((16, ("only",)), (LEAST_PLACES - 1, ("one", "other"))):
        run = driver(max_seqs=max_seqs)
        for number in range(40):
            for name in names:
                run.submit(Request(id=f"{name}{number}", prompt=(number,) * 4, max_tokens=12, tenant=name))
        for _ in range(8):
            run.tick()
        assert run.replica.statistics().running == max_seqs
        run.run()


def test_one_place_at_least_is_for_everybody() -> None:
    assert PLACES >= 1
    run = driver(max_seqs=8, blocks=256)
    for tenant in range(20):
        for number in range(3):
            run.submit(Request(id=f"{tenant}-{number}", prompt=(1,) * 4, max_tokens=3, tenant=f"t{tenant}"))
    run.run()
    assert len(run.ended) == 60


# -- prefixes ----------------------------------------------------------------------------------------------------------

PROMPT = tuple(range(20))


def cached(run: Driver, id: str, **who: str) -> int:
    run.submit(Request(id=id, prompt=PROMPT, max_tokens=1, **who))  # type: ignore[arg-type]
    run.run()
    return run.ended[id].cached_tokens  # type: ignore[union-attr]


def test_cached_tokens_stop_at_the_border_of_tenant_and_salt_and_cross_only_inside_a_group() -> None:
    run = driver(memory="prefix_tree")
    assert cached(run, "first", tenant="a") == 0
    assert cached(run, "again", tenant="a") == 16
    assert cached(run, "other tenant", tenant="b") == 0
    assert cached(run, "other salt", tenant="a", salt="s") == 0
    assert cached(run, "a joins", tenant="a", prefix_group="group:g") == 0
    assert cached(run, "b joins", tenant="b", prefix_group="group:g") == 16
    assert cached(run, "named as the group", tenant="group:h") == 0
    assert cached(run, "no name", tenant="") == 0


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["", "s"]), st.integers(0, 2)), max_size=25))
def test_what_a_tenant_finds_depends_on_its_own_requests_alone(asked: list[tuple[str, str, int]]) -> None:
    """Leave out everything that the others sent: the same tokens are found."""

    def found(requests: list[tuple[str, str, int]]) -> list[tuple[str, int]]:
        run = driver(memory="prefix_tree", blocks=512)
        hits = []
        for number, (tenant, salt, kind) in enumerate(requests):
            run.submit(
                Request(
                    id=str(number), prompt=(kind,) * 9 + PROMPT, max_tokens=1, tenant=tenant, salt=salt,
                )
            )  # fmt: skip
            run.run()
            hits.append((tenant, run.ended[str(number)].cached_tokens))  # type: ignore[union-attr]
        return hits

    everybody = found(asked)
    for tenant in "abc":
        alone = found([one for one in asked if one[0] == tenant])
        assert [hit for name, hit in everybody if name == tenant] == [hit for _, hit in alone]


def test_after_a_reset_nobody_finds_what_was_there_before_and_no_block_is_lost() -> None:
    run = driver(memory="prefix_tree", blocks=32)
    assert cached(run, "first", tenant="a") == 0
    run.submit(Request(id="runs on", prompt=PROMPT, max_tokens=12, tenant="a"))
    run.tick()
    run.tick()
    run.replica.forget_prefixes()
    run.replica.check()
    assert run.replica.statistics().cached_blocks == 0
    assert cached(run, "after", tenant="a") == 0
    assert len(run.outputs["runs on"]) == 12, "who was running is not disturbed"
    for number in range(20):  # what the old ones left behind is room like any other
        run.submit(Request(id=f"more{number}", prompt=(number,) * 60, max_tokens=2, tenant="a"))
        run.run()
    statistics = run.replica.statistics()
    assert statistics.free_blocks + statistics.cached_blocks == 32


def test_two_prompts_are_the_same_only_if_every_id_is() -> None:
    """There is no hash to collide with: ids whose Python hashes are equal, and ids beyond 8 bytes, stay apart."""
    run = driver(memory="prefix_tree", blocks=128)
    for number, odd in enumerate((-1, -2, 0, 2**61 - 1, 2**64 + 3, 3, 2**63)):
        run.submit(Request(id=str(number), prompt=(odd,) * 12, max_tokens=1))
        run.run()
        assert run.ended[str(number)].cached_tokens == 0  # type: ignore[union-attr]
