"""Which product suits an ask best: its speed there, weighed against how sought-after it is."""

from __future__ import annotations

from collections.abc import Mapping

from onefleet.core.packing.space import MILLI, Ask


def pressures(counts: Mapping[Ask, int], capacity: Mapping[str, int]) -> dict[str, int]:
    """How sought-after each product is, in thousandths of the fleet's mean; at least 1.

    Each ask of the mix spreads its size over the products that it accepts, in proportion to what
    the fleet has of them (capacity, in devices); so a product that is the only one for many stands
    under more pressure than one that is an alternative.
    """
    load = dict.fromkeys(capacity, 0)
    total = 0
    for ask, count in counts.items():
        accepted = [product for product in capacity if ask.accepts(product)]
        devices = sum(capacity[product] for product in accepted)
        if not ask.devices or not devices:
            continue
        total += ask.size * count
        for product in accepted:
            load[product] += ask.size * count * capacity[product] * MILLI // devices
    fleet = sum(capacity.values())
    if not total:
        return dict.fromkeys(capacity, MILLI)
    return {
        product: max(load[product] * fleet // (max(devices, 1) * total), 1)
        for product, devices in capacity.items()
    }


def reluctance(ask: Ask, product: str, pressure: Mapping[str, int]) -> int:
    """The order in which an ask takes products, lowest first: by speed for each unit of pressure.

    Zero for asks that name no speeds: to them all accepted products are alike.
    """
    if not ask.speeds or not ask.devices:
        return 0
    return -(ask.speed(product) * MILLI // pressure.get(product, MILLI))
