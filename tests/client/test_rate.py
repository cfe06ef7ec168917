from nbdresize.client.rate import MOST_A_SECOND, RateCap


def test_a_burst_is_cut_off_at_the_limit() -> None:
    cap = RateCap(0.0)
    assert all(cap.allows() for _ in range(MOST_A_SECOND))
    assert not cap.allows()


def test_what_an_honest_server_sends_is_let_through_for_ever() -> None:
    cap, now = RateCap(0.0), 0.0
    for _ in range(10_000):
        now += 0.1
        cap.pass_time(now, drained=True)
        assert cap.allows()


def test_more_than_the_limit_is_noticed_however_it_is_spread() -> None:
    cap, now = RateCap(0.0), 0.0
    for _ in range(10_000):
        now += 1 / (MOST_A_SECOND * 1.1)
        cap.pass_time(now, drained=True)
        if not cap.allows():
            break
    assert 5 < now < 15


def test_silence_is_no_credit() -> None:
    cap = RateCap(0.0)
    cap.pass_time(3600.0, drained=True)
    assert all(cap.allows() for _ in range(MOST_A_SECOND))
    assert not cap.allows()


def test_what_piled_up_while_nobody_looked_counts_for_all_that_time() -> None:
    """A minute of an honest server's notifications, taken in one go, and then it goes on."""
    cap = RateCap(0.0)
    cap.pass_time(60.0, drained=False)
    assert all(cap.allows() for _ in range(600))
    cap.pass_time(60.0, drained=True)
    assert all(cap.allows() for _ in range(MOST_A_SECOND))
    assert not cap.allows()


def test_a_flood_that_piled_up_while_nobody_looked_is_one() -> None:
    cap = RateCap(0.0)
    cap.pass_time(1.0, drained=False)
    assert all(cap.allows() for _ in range(2 * MOST_A_SECOND))
    assert not cap.allows()
