"""Slow oracles in plain Python, written from the definitions and from nothing else."""

import math
from fractions import Fraction

import numpy as np


def is_valid(observation, dropped):
    """observation: the values of all bands. Dropped if any band has a dropped value or is not finite."""
    return not any(value in dropped or not math.isfinite(value) for value in map(float, observation))


def luminance(observation):
    """The plain sum of the bands: exact for integers, band after band in their own type for floats."""
    if observation.dtype.kind in "ui":
        return sum(map(int, observation))
    total = observation.dtype.type(0)
    for value in observation:
        total += value
    return float(total)


def difference(a, b, dtype):
    """Normalised difference in `dtype`; minus infinity where it is undefined."""
    a, b = dtype(a), dtype(b)
    with np.errstate(over="ignore", invalid="ignore"):
        both = a + b
        value = float((a - b) / both) if both != 0 else -math.inf
    return -math.inf if math.isnan(value) else value


def median_index(n, _quantile=None):
    return n // 2


def quantile_index(n, quantile):
    return min(math.floor(Fraction(str(quantile)) * n), n - 1)


def rank_pixel(observations, usable, key, index_of, min_count=1):
    """observations (t, b), usable (t,) -> index of the picked one or -1, number of usable ones."""
    ranked = [(key(observation), t) for t, observation in enumerate(observations) if usable[t]]
    ranked.sort()  # equal keys by scene order
    if len(ranked) < min_count:
        return -1, len(ranked)
    return ranked[index_of(len(ranked))][1], len(ranked)


def rank_composite(pixels, dropped, key, index_of=median_index, nodata=0, min_count=1, usable=None):
    """pixels (t, b, y, x) -> composite (b, y, x), count (y, x), source (y, x)."""
    times, bands, height, width = pixels.shape
    composite = np.full((bands, height, width), nodata, pixels.dtype)
    count = np.zeros((height, width), np.uint16)
    source = np.full((height, width), -1, np.int16)
    for y in range(height):
        for x in range(width):
            seen = pixels[:, :, y, x]
            ok = [is_valid(seen[t], dropped) and (usable is None or usable[t, y, x]) for t in range(times)]
            source[y, x], count[y, x] = rank_pixel(seen, ok, key, index_of, min_count)
            if source[y, x] >= 0:
                composite[:, y, x] = seen[source[y, x]]
    return composite, count, source


def masked(pixels, dropped=(0,), usable=None):
    """pixels (t, b, y, x) as float64, NaN in all bands of an observation that is not valid."""
    wide = pixels.astype(np.float64)
    bad = ~np.isfinite(wide).all(axis=1)
    for value in dropped:
        bad |= (wide == value).any(axis=1)
    if usable is not None:
        bad |= ~usable
    return np.where(bad[:, None], np.nan, wide)


def trimmed_mean(values, fraction):
    """values (n,) without NaN."""
    cut = math.floor(Fraction(str(fraction)) * len(values))
    return float(np.mean(np.sort(values)[cut : len(values) - cut]))


def nearest_percentile(values, q):
    """The value at rank round(q / 100 * (n - 1)), halves to even."""
    return float(np.sort(values)[round(Fraction(str(q)) / 100 * (len(values) - 1))])


def total_distance(points, centre):
    """points (n, b), centre (b,): sum of Euclidean distances."""
    return float(np.sqrt(((points - centre) ** 2).sum(axis=1)).sum())


def geometric_median(points, steps=20000):
    """Weiszfeld with Vardi and Zhang's step in float64, until nothing moves."""
    here = points.mean(axis=0)
    for _ in range(steps):
        apart = np.sqrt(((points - here) ** 2).sum(axis=1))
        away = apart > 0
        if not away.any():
            return here
        pull = ((points[away] - here) / apart[away, None]).sum(axis=0)
        strength, weight = float(np.sqrt((pull**2).sum())), float((1 / apart[away]).sum())
        step = pull / weight * max(0.0, 1 - (~away).sum() / strength) if strength > 0 else 0 * pull
        here = here + step
        if np.abs(step).max() < 1e-13 * max(1.0, np.abs(here).max()):
            break
    return here


def deviations(points, centre):
    """Medians of cosine, Euclidean and Bray-Curtis distances of points (n, b) from a centre (b,)."""
    length = np.sqrt((points**2).sum(axis=1)) * np.sqrt((centre**2).sum())
    cosine = 1 - points @ centre / length
    euclidean = np.sqrt(((points - centre) ** 2).sum(axis=1))
    bray_curtis = np.abs(points - centre).sum(axis=1) / np.abs(points + centre).sum(axis=1)
    return np.median(cosine), np.median(euclidean), np.median(bray_curtis)


def plain_luminance_median(pixels):
    """Section by section as documented: drop 0 and 255, order by sum then scene, take index n // 2."""
    _, bands, height, width = pixels.shape
    out = np.zeros((bands, height, width), pixels.dtype)
    count, source = np.zeros((height, width), np.uint16), np.full((height, width), -1, np.int16)
    for y in range(height):
        for x in range(width):
            seen = [
                (int(p.sum(dtype=int)), t) for t, p in enumerate(pixels[:, :, y, x]) if p.min() > 0 and p.max() < 255
            ]
            count[y, x] = len(seen)
            if seen:
                source[y, x] = sorted(seen)[len(seen) // 2][1]
                out[:, y, x] = pixels[source[y, x], :, y, x]
    return {"composite": out, "count": count, "source": source}


def unlike_of_pixel(least, grey, seen, days, rule):
    """Which observations of one pixel `TemporalMask` takes for clouds and shadows, one after the other."""
    bins = [int(np.floor(day / (rule.days / 3))) for day in days]
    white = 250 if least.dtype == np.uint8 else 1024
    least, grey = ([int(value) for value in values] for values in (least, grey))
    bright = rule.brighter / 0.3558 * 255
    share = round(256 * (1 - rule.darker))
    bad = [False] * len(days)
    for quantile, limit in ((0.2, round(1.4 * bright)), (0.4, round(bright))):
        use = [here and not marked for here, marked in zip(seen, bad, strict=True)]

        def references(values, t, use=use, quantile=quantile):
            found = []
            for low, high in ((bins[t] - 3, bins[t] - 1), (bins[t] + 1, bins[t] + 3)):
                chosen = sorted(v for v, u, b in zip(values, use, bins, strict=True) if u and low <= b <= high)
                if chosen:
                    found.append(chosen[int(quantile * (len(chosen) - 1) + 0.5)])
            return found

        now = []
        for t in range(len(days)):
            lows, means = references(least, t), references(grey, t)
            marked = bool(lows) and least[t] > max(lows) + limit
            marked |= bool(means) and grey[t] * 256 < min(means) * share and min(means) - grey[t] >= 14
            near = max(8, least[t] // 16)
            alike = sum(
                s != t
                and seen[s]
                and days[t] - 0.4 * rule.days <= days[s] <= days[t] + 0.4 * rule.days
                and abs(least[s] - least[t]) <= near
                and abs(grey[s] - grey[t]) <= near
                for s in range(len(days))
            )
            now.append(seen[t] and marked and (alike < 3 or least[t] >= white))
        bad = now
    return bad
