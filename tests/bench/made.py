"""A run made by hand, with one of everything that a report has to show."""

from bench.model import Comparison, Curve, Figure, Run, Sample, Section, Spread, Target
from bench.rounds import judged

STEADY = (1.0, 1.02, 0.98, 1.01, 0.99)
WILD = (0.5, 1.5, 1.0, 0.7, 1.3)


def samples(
    rate: float,
    processor: float,
    *,
    by: tuple[float, ...] = STEADY,
    latency: float | None = None,
    memory: int = 1 << 20,
) -> list[Sample]:
    """A round for each of the factors, of requests of 4 KiB."""
    return [Sample(rate * factor, rate * factor * 4096, processor, latency, memory) for factor in by]


def steady_row(times: float = 2.0, name: str = "4 KiB random read, depth 16") -> Comparison:
    """Ours does so many times what nbdkit does, at half its processor time."""
    return judged(
        Comparison(
            name,
            {
                "native": samples(100_000 * times, 4e-6, memory=20 << 20),
                "nbdkit front": samples(60_000, 12e-6),
                "nbdkit file": samples(100_000, 8e-6, by=(1.0,) * 5),
                "qemu-nbd": samples(80_000, 9e-6),
            },
            (Target("native", throughput=1.8, processor=0.6), Target("nbdkit front", throughput=0.6)),
        )
    )


def depth_1() -> Comparison:
    return judged(
        Comparison(
            "4 KiB random read, depth 1",
            {
                "native": samples(20_000, 20e-6, latency=55e-6),
                "nbdkit file": samples(20_000, 20e-6, by=(1.0,) * 5, latency=50e-6),
            },
            (Target("native", latency=1.1),),
        )
    )


def wild_row() -> Comparison:
    """Of the three, one is not steady."""
    return judged(
        Comparison(
            "1 MiB write, depth 16",
            {
                "native": samples(2_000, 1e-3, by=WILD),
                "nbdkit file": samples(1_000, 2e-3, by=(1.0,) * 5),
                "nbd-server": samples(500, 2e-3),
            },
            (Target("native", throughput=1.6, processor=0.75),),
        )
    )


def alone_row() -> Comparison:
    return judged(Comparison("4 KiB random read, by RESIZE", {"native": samples(100_000, 4e-6)}))


def made(*rows: Comparison) -> Run:
    rows = rows or (steady_row(), depth_1(), wild_row(), alone_row())
    figures = [
        Figure.of("a decision", "ms", [4.1, 4.5, 4.25, 4.2, 4.3], target=20.0),
        Figure.of("decisions", "per second", [12_000, 12_345.6, 13_000, 12_500, 12_100], lower_is_better=False),
        Figure.of("a grow", "ms", [3.5, 21, 5, 4, 9], target=50.0),
        Figure.of("a listing", "ms", [5, 5.1]),
        Figure.slowest("a request, slowest", "ms", [1, 30, *range(1000)], target=5000.0),
        Figure("memory of one more connection", "KiB", Spread(5, 5, 5)),
    ]
    lines = {"native": [], "nbdkit file": [(1.0, 60.0), (4.0, 150.0)]}
    curve = Curve("Throughput by connections", "connections", "MiB/s", lines, True, lower_is_better=False)
    for connections, mebibytes in ((1, (100, 98, 101, 102, 99)), (4, (300, 310, 305, 295, 290))):
        curve.add("native", connections, mebibytes)
    curve.add("native", 16, (300, 900, 600, 400, 800))
    return Run(
        started="2026-01-02 03:04:05 UTC",
        seconds=300.5,
        machine={"processor": "Abacus 3000", "cores": "2"},
        versions={"nbdresize": "0.1.0 (commit 0123456789ab)", "nbdkit": "1.32.5"},
        settings={"rounds": "5", "seconds of each sample": "1"},
        sections=[
            Section("throughput", "Throughput", list(rows)),
            Section("scale", "Scale", figures=figures, curves=[curve], remarks=["The kernel allows 1,024 files."]),
        ],
    )
