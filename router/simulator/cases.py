"""The table: fleets and loads on which a change of policy has to show that it is one for the better."""

from dataclasses import replace

from router.simulator.run import Case
from router.simulator.workload import SimModel, many_models

EQUAL = (1.0,) * 12

FIRST = Case("6 models, 2 fit, load 0.8")
WARM = replace(FIRST, name="all warm, load 0.8", fits=6, warm=True)
EVICTING = Case(
    "3 nodes, 2 models, 1 fits, load 0.7",
    models=(SimModel("usual", 1.0, 3.0, 90), SimModel("other", 1.0, 3.0, 10)),
    speeds=(1.0, 2.0, 4.0),
    fits=1,
    load=0.7,
    count=1000,
    estimate_sigma=0.05,
    burst=0.0,
    foresees=True,
)
"""Where models throw one another out: whether runs are still done when it was foreseen."""
FOURS = replace(
    WARM, name="four pictures each, all warm, equal nodes, load 0.3", speeds=EQUAL, load=0.3, count=2000, counts=((4, 1),)
)
SPLIT = replace(FOURS, name="the same, by several nodes each", splits=True)

CASES = (
    FIRST,
    replace(FIRST, name="6 models, 2 fit, load 0.5", load=0.5),
    WARM,
    replace(WARM, name="all warm, equal nodes, load 0.8", speeds=EQUAL),
    replace(FIRST, name="estimates off by a factor of 2", estimate_sigma=0.7),
    replace(FIRST, name="3 routers, told on change", routers=3, told_after_s=0.01),
    replace(FIRST, name="3 routers, told 0.5 s late", routers=3, told_after_s=0.5),
    replace(FIRST, name="1 node, 3 models, 2 fit, load 0.5", models=FIRST.models[:3], speeds=(1.0,), load=0.5, count=1000),
    EVICTING,
    FOURS,
    SPLIT,
    replace(WARM, name="strong bursts, all warm, load 0.7", load=0.7, burst=1.0),
    replace(
        FIRST,
        name="24 models on 48 nodes, 2 fit, load 0.6",
        models=many_models(24),
        speeds=(1.0,) * 32 + (0.5,) * 16,
        load=0.6,
    ),
)
"""The first is what `mean_s` and `load_share` are told of."""
