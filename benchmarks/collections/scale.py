"""What a collection of N images costs: the measured costs of an image and a pair, and a simulated scheduler.

    python benchmarks/collections/scale.py --image-ms A --pair-ms B --vlad-ms C --search-gflops F \\
        --feature-bytes D --match-bytes E

Times are of one core, as `OMP_NUM_THREADS=1 python benchmarks/collections/soak.py PHOTOS --kills 0 ...` prints them; F is
how fast faiss compares vectors of 8,192 numbers (the search is exact: every image with every other).

The simulation hands chunks of pairs to workers that fail now and then; a chunk that was lost is done again by a new worker,
which must start first. It prints the share of the workers' time that is kept.
"""

import argparse
import heapq
import math
import random
import time

import numpy as np

DAY = 86_400.0
VLAD = 8_192  # numbers of a vector: 64 words of 128 channels


def simulate(chunks: int, workers: int, seconds: float, lifetime: float, start: float, seed: int = 0) -> tuple[float, float]:
    """Wall seconds until all chunks are done, and the share of the workers' time that was not lost. A chunk takes `seconds`
    +-20 %, a worker fails after `lifetime` seconds on average, a new one needs `start`."""
    rng = random.Random(seed)
    waiting, useful, now = chunks, 0.0, 0.0
    dies = [rng.expovariate(1 / lifetime) for _ in range(workers)]
    events: list[tuple[float, int, float]] = []  # when a worker is free, which, what it then has done

    def give(worker: int, at: float) -> None:
        nonlocal waiting
        if waiting:
            waiting -= 1
            took = seconds * rng.uniform(0.8, 1.2)
            if at + took > dies[worker]:  # lost: back to the queue, and a new worker
                waiting += 1
                again = max(dies[worker], at) + start
                dies[worker] = again + rng.expovariate(1 / lifetime)
                heapq.heappush(events, (again, worker, 0.0))
            else:
                heapq.heappush(events, (at + took, worker, took))

    for worker in range(workers):
        give(worker, 0.0)
    while events:
        now, worker, done = heapq.heappop(events)
        useful += done
        give(worker, now)
    return now, useful / (now * workers)


def search_gflops(images: int = 6000, queries: int = 1500) -> float:
    """Billions of operations a second of faiss's exact search on one core, the best of three."""
    import faiss

    faiss.omp_set_num_threads(1)
    vectors = np.random.default_rng(0).standard_normal((images, VLAD), dtype=np.float32)
    index = faiss.IndexFlatIP(VLAD)
    index.add(vectors)  # pyright: ignore[reportCallIssue]
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        index.search(vectors[:queries], 20)  # pyright: ignore[reportCallIssue]
        seconds.append(time.perf_counter() - start)
    return 2e-9 * images * queries * VLAD / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-ms", type=float, required=True)
    parser.add_argument("--pair-ms", type=float, required=True)
    parser.add_argument("--vlad-ms", type=float, required=True)
    parser.add_argument("--search-gflops", type=float, help="measured here on one core where it is left out")
    parser.add_argument("--feature-bytes", type=float, required=True)
    parser.add_argument("--match-bytes", type=float, required=True)
    parser.add_argument("--neighbours", type=int, default=20)
    parser.add_argument("--cores-a-machine", type=int, default=2)
    options = parser.parse_args()
    if options.search_gflops is None:
        options.search_gflops = search_gflops()
        print(f"faiss compares vectors at {options.search_gflops:.0f} GFLOP/s\n")
    core_days = DAY * options.cores_a_machine
    heads = ("images", "pairs, all", "pairs, retrieval", "features", "search", "all pairs", "retrieved pairs")
    print(f"Machine days of {options.cores_a_machine} cores:\n")
    print("| " + " | ".join((*heads, "machines for a day", "vectors in memory", "disk")) + " |\n|" + "---|" * 10)
    for n in (10**4, 10**6, 10**8):
        every, retrieved = n * (n - 1) / 2, n * options.neighbours * 0.7  # three in ten are each other's neighbours
        features = n * (options.image_ms + options.vlad_ms) / 1000 / core_days
        search = 2.0 * n * n * VLAD / (1e9 * options.search_gflops) / core_days
        matching = {pairs: pairs * options.pair_ms / 1000 / core_days for pairs in (every, retrieved)}
        total = features + search + matching[retrieved]
        disk = n * options.feature_bytes + retrieved * options.match_bytes
        days = " | ".join(f"{part:.2g}" for part in (features, search, matching[every], matching[retrieved]))
        print(
            f"| 10^{len(str(n)) - 1} | {every:.1e} | {retrieved:.1e} | {days} | {math.ceil(total):,} | "
            f"{4 * n * VLAD / 1e9:.2g} GB | {disk / 1e12:.2g} TB |"
        )
    print(
        "\n| workers | chunks | mean time between failures of a worker | wall, hours | share of the time kept |\n|"
        + "---|" * 5
    )
    chunk = 128 * options.pair_ms / 1000
    for workers, chunks, hours in (
        (2, 1_100, 24),
        (100, 110_000, 24),
        (100, 110_000, 1),
        (1_000, 1_100_000, 24),
        (1_000, 1_100_000, 1),
    ):
        wall, share = simulate(chunks, workers, chunk, hours * 3600, start=20.0)
        print(f"| {workers:,} | {chunks:,} | {hours} h | {wall / 3600:.2f} | {100 * share:.1f} % |")


if __name__ == "__main__":
    main()
