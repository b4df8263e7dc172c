"""Some hundred requests of every kind leave nothing behind; python -m serve.bench soak asks twenty thousand."""

from __future__ import annotations

from serve.bench.machine import Machine
from serve.bench.report import Head
from serve.bench.soak import Sample, SoakPlan, SoakReport, bench_soak

HEAD = Head("pytest", Machine("", 1, 1.0, 0.0, "", {}), "")


async def test_mixed_requests_left_ones_and_broken_pictures_leave_nothing_behind():
    report = await bench_soak(SoakPlan(requests=300, at_once=8, workers=2), HEAD)
    trends = report.trends()
    print()
    for name, found in trends.items():
        told = ", ".join(f"{what} {trend.first:.1f} to {trend.last:.1f}" for what, trend in found.items())
        print(f"{name}: {told}")
    assert sum(report.outcomes.values()) == 300
    assert report.problems() == []
    assert any(outcome.startswith("left: left") for outcome in report.outcomes)
    assert report.outcomes["bad picture: 400"] > 0


def test_what_grows_is_called_a_problem():
    def samples(rss: float, descriptors: float) -> tuple[Sample, ...]:
        return tuple(Sample(n * 10, 100 + rss * n, int(20 + descriptors * n), 5) for n in range(100))

    def problems(**changes: float) -> list[str]:
        grown = {"rss": 0.0, "descriptors": 0.0, **changes}
        taken = samples(**grown)
        rests = {"worker 1": (taken[10], taken[-1])}
        report = SoakReport(HEAD, SoakPlan(), 1.0, {}, (), 0, 0, 0.0, {"worker 1": taken}, rests)
        return report.problems()

    assert problems() == []
    assert "rss_mib of worker 1" in problems(rss=0.5)[0]
    assert "descriptors of worker 1" in problems(descriptors=0.1)[0]
    assert SoakReport(HEAD, SoakPlan(), 1.0, {}, (), 1, 0, 0.0, {}, {}).problems()
    assert "0.5 % of the memory" in SoakReport(HEAD, SoakPlan(), 1.0, {}, (), 0, 0, 0.005, {}, {}).problems()[0]
