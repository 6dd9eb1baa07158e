"""API requests that a server has answered, by how long they took; needs `server.metrics: true`."""

from collections import Counter
from dataclasses import dataclass
from typing import Self

from prefect.client.orchestration import PrefectClient
from prometheus_client.parser import text_string_to_metric_families

METRIC = "prefect_server_request_duration_seconds"
ALL = float("inf")


@dataclass(frozen=True)
class Requests:
    """Number of requests by the seconds within which they were answered; `ALL` has all of them."""

    within: Counter[float]

    @classmethod
    async def read(cls, prefect: PrefectClient) -> Self | None:
        """Return those since the start of the server; None if it does not serve metrics."""
        answer = await prefect._client.get("/metrics", follow_redirects=True)
        within = Counter[float]()
        for family in text_string_to_metric_families(answer.text):
            for sample in family.samples:
                if sample.name == f"{METRIC}_bucket":
                    within[float(sample.labels["le"])] += round(sample.value)
        return cls(within) if within else None

    def since(self, earlier: Self) -> Self:
        """Return those answered since then."""
        return type(self)(Counter({s: self.within[s] - earlier.within[s] for s in self.within}))

    def quantile(self, share: float) -> float:
        """Return the seconds within which this share of the requests was answered, rounded up."""
        wanted = share * self.within[ALL]
        return min(seconds for seconds, count in self.within.items() if count >= wanted)
